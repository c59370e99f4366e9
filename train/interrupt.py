"""Ctrl-C and SIGTERM: an exit at once while nothing needs saving, later a graceful one.

Imports only what loads in an instant: `exit_at_once` must be in force before all else.
"""

import contextlib
import gc
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from types import FrameType
from typing import Any, Self


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


class StopRequest:
    """Within this context, records SIGINT and SIGTERM; a second Ctrl-C interrupts.

    Args:
        message: printed at the first signal; says when the process will stop.

    Attributes:
        signal: the signal received; None if there was none.
    """

    def __init__(self, message: str) -> None:
        self._message = message
        self.signal: signal.Signals | None = None
        self._previous: dict[int, Callable[..., Any] | int | None] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return self.signal is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.signal = signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print(f"\n{self._message}", file=sys.stderr)
