"""Checks the options of a command line, and adds those of its --config file."""

import dataclasses
import itertools
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train import json_fields
from train.command_line import option_file
from train.errors import UserError, did_you_mean

# Options that the parser adds to every command.
_PARSERS_OWN = ("help", "tyro-print-completion", "tyro-write-completion")


def check_and_expand(
    arguments: Sequence[str], commands: Mapping[str, type[Any]]
) -> list[str]:
    """Checks a command line and appends the options of its --config file.

    Args:
        arguments: the name of a command and its arguments.
        commands: dataclasses by name, whose fields are the options.

    Returns:
        The arguments, then the options of the file that are not among them.

    Raises:
        UserError: for an unknown command or option (the message suggests similar
            names), or for a value of the wrong type.
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
                + (f" --{name} is an option of {', '.join(others)}." if others else "")
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
    path = value_of(option_file.OPTION, rest) if option_file.OPTION in given else None
    if path is None:
        return list(arguments)
    from_file = [
        text
        for field, value in option_file.read(Path(path), types).items()
        if field not in given
        for text in _arguments(field, value)
    ]
    return [command, *rest, *from_file]


def _check_values(
    argument: str, following: Sequence[str], hint: Any, has_positionals: bool
) -> None:
    """Checks an option's values here, since the parser's own messages are obscure.

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
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            found |= option_types(hint)
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
    """Returns a field's name on the command line, without the leading dashes."""
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
