"""Networks, datasets and optimizers of the user's own, named MODULE:NAME."""

import contextlib
import functools
import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from train.errors import OwnCodeError, UserError

FORM = "MODULE:NAME"
# The options of a run that may name the user's own code.
FIELDS = ("dataset", "model", "optimizer")
_REFERENCE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def is_reference(name: str) -> bool:
    """Whether a name has the form MODULE:NAME, such as my_project.networks:Net."""
    return _REFERENCE.fullmatch(name) is not None


def options(values: Mapping[str, Any], but: Collection[str] = ()) -> str:
    """Command-line options that `--resume` needs to name the user's own code.

    Args:
        values: the options of a run, by name.
        but: references to leave out.
    """
    named = [(field, str(values.get(field, ""))) for field in FIELDS]
    return "".join(
        f" --{field} {name}"
        for field, name in named
        if is_reference(name) and name not in but
    )


def short(name: str) -> str:
    """Returns NAME of MODULE:NAME, for file names; other names are unchanged."""
    return name.partition(":")[2] if is_reference(name) else name


def load(reference: str) -> Callable[..., Any]:
    """Imports what a reference names.

    Args:
        reference: MODULE:NAME. The module is found as `import` finds it: in the current
            folder, or on PYTHONPATH.

    Returns:
        The function or class.

    Raises:
        UserError: if there is no such module, or nothing of that name in it.
        OwnCodeError: if importing the module fails.
    """
    module_name, _, name = reference.partition(":")
    module = _import(reference, module_name)
    if not hasattr(module, name):
        known = [
            each
            for each, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module_name
        ]
        listed = f" It defines {', '.join(known)}." if known else ""
        raise UserError(
            f"{reference}: the module {module_name} ({_file(module)}) has no "
            f"{name!r}.{listed}"
        )
    found = getattr(module, name)
    if not callable(found):
        raise UserError(
            f"{reference} must be a function or a class, but is of type "
            f"{type(found).__name__}."
        )
    return found


def _import(reference: str, name: str) -> Any:
    try:
        with running(f"Importing {name}, for {reference},"):
            return importlib.import_module(name)
    except OwnCodeError as error:
        missing = getattr(error.__cause__, "name", None)
        absent = isinstance(error.__cause__, ModuleNotFoundError) and missing
        if not absent or not f"{name}.".startswith(f"{missing}."):
            raise
        raise UserError(
            f"{reference}: there is no module {missing!r} in the current folder, "
            f"{Path.cwd()}, or elsewhere on Python's path. Run the command in the "
            "folder that contains it, or add that folder to PYTHONPATH."
        ) from error


@contextlib.contextmanager
def running(what: str) -> Iterator[None]:
    """Attributes exceptions within this context to the user's own code.

    Args:
        what: the subject of the error message, "... failed".

    Raises:
        OwnCodeError: whose cause is the exception.
    """
    try:
        yield
    except (UserError, OwnCodeError):
        raise
    except Exception as error:
        raise OwnCodeError(f"{what} failed: see the traceback above.") from error


def parameters(reference: str) -> dict[str, inspect.Parameter]:
    """The arguments of what a reference names.

    Raises:
        UserError: if Python cannot determine them, or as `load`.
        OwnCodeError: as `load`.
    """
    try:
        return dict(inspect.signature(load(reference)).parameters)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{reference}: its arguments cannot be determined ({error}). Wrap it in a "
            "function of your own."
        ) from error


def takes(given: Mapping[str, inspect.Parameter], name: str) -> bool:
    """Whether a function with these parameters takes an argument by its name."""
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    return name in given and given[name].kind in kinds


def checksums(*names: str) -> dict[str, str]:
    """Checksums of the files with the user's own code, by reference.

    Args:
        *names: references, and other names, which are left out.
    """
    return {name: _checksum(name) for name in names if is_reference(name)}


@functools.cache
def _checksum(reference: str) -> str:
    """SHA-256 of the file that defines the named object, but not of its imports."""
    defined_in = getattr(load(reference), "__module__", reference.partition(":")[0])
    path = _file(sys.modules.get(defined_in))
    return hashlib.sha256(path.read_bytes()).hexdigest() if path else ""


def _file(module: Any) -> Path | None:
    file = getattr(module, "__file__", None)
    return None if file is None else Path(file)
