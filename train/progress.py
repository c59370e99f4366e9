"""Progress bars that keep log files short."""

import sys
from typing import Any

from tqdm import tqdm

# Each update of a bar in a file adds a line to it.
_SECONDS_IN_FILE = 10.0


def bar(*args: Any, **kwargs: Any) -> tqdm:
    """A tqdm bar; where stderr is no terminal, updated every 10 seconds at most."""
    if not sys.stderr.isatty():
        kwargs["mininterval"] = max(_SECONDS_IN_FILE, kwargs.get("mininterval", 0))
    return tqdm(*args, **kwargs)


def write(text: str, file: Any = None) -> None:
    """Prints a line above the bars; in a file they are not drawn again for it."""
    if sys.stderr.isatty():
        tqdm.write(text, file=file)
    else:
        print(text, file=file or sys.stdout, flush=True)
