"""Ctrl-C where there is nothing to save: while modules load, and data and programs.

Imports only what is loaded in an instant: it must be in force before all else.
"""

import contextlib
import gc
import os
import signal
import tempfile
from types import FrameType


def exit_at_once() -> None:
    """Makes Ctrl-C end this process in a line, with status 130.

    A KeyboardInterrupt would not do: raised in a callback of the garbage collector, as
    JAX has one, it is printed and forgotten; in the midst of an import it is a
    traceback; and what then unwinds past the running compiler may crash.
    """
    signal.signal(signal.SIGINT, _exit)


def _exit(number: int, frame: FrameType | None) -> None:
    del frame
    signal.signal(number, signal.SIG_DFL)  # Once more, it does not even clean up.
    # Not print, which may be interrupted itself.
    os.write(2, b"\nInterrupted.\n")
    # Without the interpreter's own way to its end nobody else removes them.
    for value in gc.get_objects():
        if type(value) is tempfile.TemporaryDirectory:
            with contextlib.suppress(Exception):
                value.cleanup()
    os._exit(128 + number)
