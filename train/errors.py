"""User errors, what they suggest, and how they are reported."""

import difflib
import importlib.util
import io
import os
import select
import signal
import sys
import traceback
import types
from collections.abc import Callable, Iterable
from pathlib import Path

# The packages that pyproject.toml declares for the application, and their modules.
PACKAGES = {
    "flax": "flax",
    "grain": "grain",
    "importlib_resources": "importlib_resources",
    "jax": "jax",
    "jaxlib": "jaxlib",
    "matplotlib": "matplotlib",
    "numpy": "numpy",
    "optax": "optax",
    "orbax-checkpoint": "orbax.checkpoint",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "tensorboardX": "tensorboardX",
    "tensorflow-datasets": "tensorflow_datasets",
    "tqdm": "tqdm",
    "tyro": "tyro",
}
# Needed only by some datasets and options, which import them when a run starts.
_WHEN_USED = {
    "grain",
    "importlib_resources",
    "scikit-learn",
    "tensorboardX",
    "tensorflow-datasets",
}


class UserError(Exception):
    """An error shown without a traceback; names the cause, the place and a remedy."""


class OwnCodeError(Exception):
    """A network, dataset or optimizer of the user's own raised an exception.

    Shown below the traceback of that exception, its cause.
    """


def print_warning(text: str) -> None:
    """Prints a warning to stderr."""
    print(f"Warning: {text}", file=sys.stderr)


def did_you_mean(name: str, names: Iterable[str], before: str = "") -> str:
    """Returns a sentence with similar names, after a space; "" if there are none.

    Args:
        name: the unknown name: initials, a beginning, or a misspelling.
        names: the known names. Case is ignored, and dashes equal underscores.
        before: precedes each suggested name.
    """
    name = _plain(name)
    plain = {_plain(each): each for each in names}
    found = [name] if name in plain else []
    found = found or [n for n in plain if _initials(n) == name]
    found = found or [n for n in plain if name and n.startswith(name)][:3]
    found = found or difflib.get_close_matches(name, plain, n=2)
    if not found:
        return ""
    return f" Did you mean {' or '.join(before + plain[n] for n in found)}?"


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def _initials(name: str) -> str:
    return "".join(word[:1] for word in name.split("-"))


def missing_packages() -> list[str]:
    """Returns the missing packages among those that every run needs; imports none."""
    return [
        name
        for name, module in PACKAGES.items()
        if name not in _WHEN_USED and not _is_installed(module)
    ]


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # Its parent package is missing.
        return False


def require_packages(program: str) -> None:
    """Exits with one line and status 2 if a package that every run needs is missing.

    Many are imported late, since they are slow to import: without this check, training
    could end in an error when the plot is drawn.
    """
    if missing := missing_packages():
        print(f"Error: {_advice(program, missing)}", file=sys.stderr)
        sys.exit(2)


def _advice(program: str, missing: list[str]) -> str:
    are = "which is" if len(missing) == 1 else "which are"
    return (
        f"{program} needs {', '.join(missing)}, {are} not installed. Run: "
        "pip install 'insgd_optax[train]', or in this checkout, "
        f"{Path(__file__).parents[1]}: pip install -e '.[train]'"
    )


def _drop_closed_output() -> bool:
    """Returns whether stdout is a closed pipe; if so, redirects it to /dev/null."""
    try:
        # Polled, since flushing does not detect it if PYTHONUNBUFFERED is set.
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        closed = bool(poll.poll(0))
    except io.UnsupportedOperation:  # Not a file.
        return False
    if closed:
        # Otherwise Python would complain when it flushes stdout at exit.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return True
    return False


def report_errors(execute: Callable[[], int]) -> int:
    """Runs a command and prints user errors without a traceback.

    Returns:
        The exit status.
    """
    try:
        return execute()
    # An OSError already names the path.
    except (UserError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _drop_closed_output():
            return 128 + signal.SIGPIPE  # As with `| head`.
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except OwnCodeError as error:
        if error.__cause__ is not None:
            trace = _from_own_code(error.__cause__.__traceback__)
            traceback.print_exception(error.__cause__.with_traceback(trace))
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        modules = {name: module.partition(".")[0] for name, module in PACKAGES.items()}
        named = str(error.name).partition(".")[0]
        missing = [name for name, module in modules.items() if module == named]
        if not missing:
            raise
        print(f"Error: {_advice('this command', missing)}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(
            f"Error: not enough memory ({error}). Use a smaller batch size, network or "
            "image.",
            file=sys.stderr,
        )
        return 2
    except RuntimeError as error:
        if "home directory" in str(error):  # From `Path.expanduser`.
            print(
                "Error: a path begins with ~ and the name of a user who does not "
                "exist. Pass another path.",
                file=sys.stderr,
            )
            return 2
        # A JaxRuntimeError, recognized by its text: importing JAX for the type takes
        # seconds.
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        reason = str(error).splitlines()[0]
        print(
            f"Error: not enough memory on the device ({reason}). Use a smaller batch "
            "size, network or image.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 128 + signal.SIGINT


def _from_own_code(trace: types.TracebackType | None) -> types.TracebackType | None:
    """Drops the first frames of a traceback: those of this package and of `import`."""
    first = trace
    while first is not None:
        file = Path(first.tb_frame.f_code.co_filename)
        imports = "importlib" in file.parts or file.name.startswith("<frozen")
        if not imports and not file.is_relative_to(Path(__file__).parent):
            return first
        first = first.tb_next
    return trace
