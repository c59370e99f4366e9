"""Progress bars that keep log files short."""

import sys
from typing import Any

from tqdm import tqdm

# A file keeps every update of a bar.
_SECONDS_IN_FILE = 10.0


def bar(*args: Any, **kwargs: Any) -> tqdm:
    """Creates a tqdm bar that updates at most every 10 seconds outside of terminals."""
    if not sys.stderr.isatty():
        kwargs["mininterval"] = max(_SECONDS_IN_FILE, kwargs.get("mininterval", 0))
    return tqdm(*args, **kwargs)


def write(text: str, file: Any = None) -> None:
    """Prints a line above the bars; outside of terminals, without redrawing them."""
    if sys.stderr.isatty():
        tqdm.write(text, file=file)
    else:
        print(text, file=file or sys.stdout, flush=True)
