"""Parses command lines with tyro, and formats its help and its errors."""

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
from typing import Annotated, Any, TextIO, Union
from unittest import mock

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    StructConstructorSpec,
    StructTypeInfo,
)


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
    """Returns the reason for a parser error: the text above the rule in its box."""
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
    _deferring.append(info)  # This rule then returns None, and tyro's own applies.
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
