"""Parses command lines and option files, and formats the help."""

import contextlib
import dataclasses
import functools
import io
import itertools
import operator
import os
import re
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TextIO, Union
from unittest import mock

import tyro
import yaml
from tyro.constructors import (
    ConstructorRegistry,
    StructConstructorSpec,
    StructTypeInfo,
)

from train import json_fields
from train.errors import UserError, did_you_mean

_CONFIG = "config"
# Options that the parser adds to every command.
_PARSERS_OWN = ("help", "tyro-print-completion", "tyro-write-completion")
# `write` leaves out paths, which differ between machines.
_PLACES = {"runs_dir", "run_dir", "resume", "cache_dir"}


def parse(
    arguments: Sequence[str],
    commands: Mapping[str, type[Any]],
    *,
    program: str,
    description: str,
    default: str | None = None,
) -> Any:
    """Parses a command line.

    Args:
        arguments: without the program's name.
        commands: dataclasses by name, whose fields are the options.
        program: the program's name.
        description: description of the program, shown in its help.
        default: the command that needs no name, for the help.

    Returns:
        An instance of the command's dataclass.

    Raises:
        SystemExit: for help and for invalid options.
    """
    name, *options = arguments
    if name in commands:
        return parse_options(options, commands[name], program=f"{program} {name}")
    subcommands: Any = [
        Annotated[
            Any,
            tyro.conf.subcommand(name, constructor=config, is_default=name == default),
        ]
        for name, config in commands.items()
    ]
    return _run_parser(
        functools.reduce(operator.or_, subcommands),
        arguments,
        program=program,
        description=description,
    )


def parse_options(
    arguments: Sequence[str], config: type[Any], *, program: str, defaults: Any = None
) -> Any:
    """Parses the options of one command, see `parse`.

    Args:
        arguments: without the name of the command.
        config: dataclass of its options.
        program: the program's name and the command's.
        defaults: an instance with other defaults. Default: the dataclass's own.
    """
    given = {} if defaults is None else {"default": defaults}
    return _run_parser(config, arguments, program=program, **given)


def _run_parser(
    options: Any, arguments: Sequence[str], *, program: str, **more: Any
) -> Any:
    """Parses arguments; reports an error in one line, without tyro's box.

    Args:
        options: a dataclass, or a union of subcommands, for `tyro.cli`.
        arguments: without the program's name.
        program: the program's name, and the command's if there is one.
        **more: further arguments of `tyro.cli`.

    Returns:
        An instance of the dataclass.

    Raises:
        SystemExit: for help and for invalid options.
    """
    wants_help = not {"-h", "--help"}.isdisjoint(arguments)
    output = _Captured(like=sys.stdout) if wants_help else _Captured()
    errors = _Captured()
    width = {} if wants_help else {"COLUMNS": "100000"}
    try:
        with (
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(errors),
            mock.patch.dict(os.environ, width),
        ):
            return tyro.cli(
                options, args=arguments, prog=program, registry=_HELP, **more
            )
    except SystemExit:
        # A list of all commands in braces is wider than a terminal.
        print(re.sub(r"\[\{.*,.*\}\]", "[COMMAND]", output.getvalue()), end="")
        if errors.getvalue():
            reason = _without_frame(errors.getvalue())
            print(f"Error: {reason} All options: {program} --help", file=sys.stderr)
        raise


class _Captured(io.StringIO):
    """Captures the parser's output; imitates a UTF-8 file, or the stream `like`."""

    def __init__(self, like: TextIO | None = None) -> None:
        super().__init__()
        self._like = like

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._like.encoding if self._like else "utf-8"

    def isatty(self) -> bool:
        return self._like is not None and self._like.isatty()


def _without_frame(text: str) -> str:
    """Returns the reason of a parser's error: the text above the rule in its box."""
    lines = [line.strip("│ ") for line in text.splitlines() if line.startswith("│")]
    reason = " ".join(itertools.takewhile(lambda line: set(line) != {"─"}, lines))
    reason = re.sub(r"^Error parsing (\w+Config: )?", "", reason) or text.strip()
    return reason if reason.endswith((".", "?")) else f"{reason}."


_HELP = ConstructorRegistry()


@_HELP.struct_rule
def _without_none(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Omits None from the help; the docstrings of options state what it means."""
    if not dataclasses.is_dataclass(info.type) or _deferring:
        return None
    _deferring.append(info)  # tyro's own rule then gives all but the types.
    try:
        found = ConstructorRegistry.get_struct_spec(info)
    finally:
        _deferring.pop()
    if not isinstance(found, StructConstructorSpec):
        return None
    fields = [
        dataclasses.replace(field, type=_documented(field.type))
        for field in found.fields
    ]
    return dataclasses.replace(found, fields=tuple(fields))


_deferring: list[StructTypeInfo] = []


def _documented(hint: Any) -> Any:
    """Annotates the type of an option with its placeholder and default in the help."""
    annotated = typing.get_origin(hint) is Annotated
    inner, *given = typing.get_args(hint) if annotated else [hint]
    if dataclasses.is_dataclass(inner):
        return hint
    shown = tyro.conf.arg(metavar=_metavar(inner), help_behavior_hint=_default)
    # The option's own annotations come last and take precedence.
    return Annotated[inner, shown, *given]


def _default(label: str) -> str:
    return "" if label in ("None", "") else f"(default: {label})"


def _metavar(hint: Any) -> str | None:
    """The placeholder for the value of an option that may be None, without the None."""
    if typing.get_origin(hint) not in (Union, types.UnionType):
        return None
    inner, *others = [each for each in typing.get_args(hint) if each is not type(None)]
    if others:
        return None
    if typing.get_origin(inner) is typing.Literal:
        return "{" + ",".join(typing.get_args(inner)) + "}"
    return inner.__name__.upper()


def understood(
    arguments: Sequence[str], commands: Mapping[str, type[Any]]
) -> list[str]:
    """Inserts the options of the --config file into a command line.

    Args:
        arguments: the name of a command and its arguments.
        commands: dataclasses by name, whose fields are the options.

    Returns:
        The arguments, then the options of the file that are not among them.

    Raises:
        UserError: for an unknown name, with similar ones, or a value of another type.
    """
    command, *rest = arguments
    if command not in commands:
        if command in ("-h", "--help"):
            return list(arguments)
        raise UserError(
            f"there is no command {command!r}.{did_you_mean(command, commands)} "
            f"Available subcommands: {', '.join(commands)}"
        )
    types = option_types(commands[command])
    has_positionals = any(
        field.default is field.default_factory is dataclasses.MISSING
        for field in dataclasses.fields(commands[command])
    )
    given = set()
    for number, argument in enumerate(rest):
        name = _option_name(argument)
        if name is None or name in _PARSERS_OWN or (name == "h" and argument == "-h"):
            continue
        if (field := _field(name, types)) is None:
            others = [
                other
                for other, config in commands.items()
                if _field(name, option_types(config)) is not None
            ]
            spelled = argument.partition("=")[0]
            raise UserError(
                f"{command} has no option {spelled}.{_meant(name, types)}"
                + (f" It is an option of {', '.join(others)}." if others else "")
                + f" All options: python -m train {command} --help"
            )
        given.add(field)
        values = itertools.takewhile(
            lambda each: _option_name(each) is None, rest[number + 1 :]
        )
        try:
            _check_values(argument, [*values], types[field], has_positionals)
        except json_fields.FieldError as error:
            raise UserError(
                f"{error}. All options: python -m train {command} --help"
            ) from error
    path = value_of(_CONFIG, rest) if _CONFIG in given else None
    if path is None:
        return list(arguments)
    from_file = [
        text
        for field, value in read(Path(path), types).items()
        if field not in given
        for text in _arguments(field, value)
    ]
    return [command, *rest, *from_file]


def _check_values(
    argument: str, following: Sequence[str], hint: Any, has_positionals: bool
) -> None:
    """Checks the values of an option, for which the parser's message is obscure.

    Args:
        argument: --name or --name=value.
        following: the arguments up to the next option.
        hint: the type of the option.
        has_positionals: whether the command has arguments that are not options.

    Raises:
        FieldError: if a value is not the number it must be, or a switch has a value.
    """
    spelled, equals, value = argument.partition("=")
    values = [value] if equals else following
    if typing.get_origin(hint) is not tuple:
        values = values[:1]
    for text in values:
        if hint is not bool:
            json_fields.check_number(spelled, text, hint)
        elif equals or not has_positionals:
            name = spelled.removeprefix("--").removeprefix("no-")
            raise json_fields.FieldError(
                f"{spelled} takes no value, got {text!r}: write --{name} or --no-{name}"
            )


def read(path: Path, types: Mapping[str, Any]) -> dict[str, Any]:
    """Reads a file of options.

    Args:
        path: a YAML file that maps names of options to values.
        types: the types of the options, by field name.

    Returns:
        The values by the names of fields.

    Raises:
        UserError: naming what is wrong in the file.
    """
    try:
        values = yaml.safe_load(path.expanduser().read_text())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--config {path} is not a YAML file: {reason}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(
            f"--config {path} holds {json_fields.kind(values)}, not names of options "
            "with their values, such as epochs: 5"
        )
    found = {}
    for key, value in values.items():
        field = str(key).replace("-", "_")
        if field not in types or field == _CONFIG:
            raise UserError(
                f"--config {path}: there is no option {str(key)!r}."
                f"{did_you_mean(_spelled(field), types)}"
            )
        value = _as_number(value, types[field])
        try:
            json_fields.check(str(key), value, types[field])
        except json_fields.FieldError as error:
            raise UserError(f"--config {path}: {error}") from error
        found[field] = value
    return found


def write(values: Mapping[str, Any], path: str) -> str:
    """Returns the text of a file of options that repeats a run.

    Args:
        values: the options as JSON holds them, by the names of fields.
        path: path of the file, which the command in its first line names.
    """
    told = {
        name: value
        for name, value in values.items()
        if name not in _PLACES and value is not None
    }
    return f"# Repeats this run: python -m train --config {path}\n" + yaml.safe_dump(
        _plain(told), sort_keys=False
    )


def value_of(name: str, arguments: Sequence[str]) -> str | None:
    """Returns the last value of an option; None without the option or a value."""
    found = None
    for number, argument in enumerate(arguments):
        if _option_name(argument) == name:
            _, equals, value = argument.partition("=")
            following = arguments[number + 1 : number + 2]
            found = value if equals else next(iter(following), None)
    return found or None


def option_types(config: type[Any]) -> dict[str, Any]:
    """Returns the types of a command's options by field name.

    Fields without a default are positional arguments, and are left out.
    """
    found: dict[str, Any] = {}
    hints = json_fields.hints(config)
    for field in dataclasses.fields(config):
        hint = hints[field.name]
        inner = typing.get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
        if dataclasses.is_dataclass(inner):
            assert isinstance(inner, type)
            found |= option_types(inner)
        elif field.default is not dataclasses.MISSING:
            found[field.name] = hint
    return found


def _option_name(argument: str) -> str | None:
    """Returns the name in --name, --name=value or -name; None for a value."""
    name = argument.lstrip("-").partition("=")[0].replace("_", "-")
    if not (argument.startswith("-") and name):
        return None
    try:
        float(argument)
    except ValueError:
        return name
    return None


def _field(name: str, types: Mapping[str, Any]) -> str | None:
    """Returns the field that an option sets, if any."""
    field = name.replace("-", "_")
    if field in types:
        return field
    negated = field.removeprefix("no_")
    return negated if negated != field and types.get(negated) is bool else None


def _arguments(field: str, value: Any) -> list[str]:
    option = f"--{_spelled(field)}"
    if isinstance(value, bool):
        return [option if value else f"--no-{_spelled(field)}"]
    if isinstance(value, list):
        return [option, *map(str, value)]
    return [f"{option}={value}"]


def _spelled(field: str) -> str:
    """Returns a field's name on the command line, without dashes."""
    return field.replace("_", "-")


def _meant(name: str, types: Mapping[str, Any]) -> str:
    """Suggests similar options of a command."""
    negation = "no-" if name.startswith("no-") else ""
    found = did_you_mean(
        name.removeprefix(negation), map(_spelled, types), f"--{negation}"
    )
    if not found and "optimizers" in types and did_you_mean(name, ["learning-rate"]):
        return (
            " Give each optimizer its learning rate: --optimizers sgd@0.1 adam@0.001."
        )
    return found


def _as_number(value: Any, hint: Any) -> Any:
    """Converts a number that YAML 1.1 reads as text, such as 5e-4."""
    if isinstance(value, str) and not json_fields.fits(value, hint):
        try:
            number = float(value)
        except ValueError:
            return value
        return number if json_fields.fits(number, hint) else value
    return value


def _plain(value: Any) -> Any:
    """Converts tuples to lists for YAML."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return list(map(_plain, value)) if isinstance(value, tuple | list) else value
