"""Ctrl-C and SIGTERM: an immediate exit until training starts, then a graceful stop.

This module imports only fast modules, because `exit_at_once` must run before slow
imports.
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
    """Makes Ctrl-C end this process with one line and status 130.

    KeyboardInterrupt is not enough. Raised in a callback of the garbage collector, such
    as JAX's, it is printed and dropped; raised during an import, it gives a traceback;
    and unwinding past the running compiler may crash.
    """
    signal.signal(signal.SIGINT, _exit)


def _exit(number: int, frame: FrameType | None) -> None:
    del frame
    signal.signal(number, signal.SIG_DFL)  # A second Ctrl-C skips the cleanup.
    # `print` could itself be interrupted.
    os.write(2, b"\nInterrupted.\n")
    # os._exit bypasses the finalizers that would remove temporary folders.
    for value in gc.get_objects():
        if type(value) is tempfile.TemporaryDirectory:
            with contextlib.suppress(Exception):
                value.cleanup()
    os._exit(128 + number)


class StopRequest:
    """Within this context, records SIGINT and SIGTERM; after one, Ctrl-C interrupts.

    Args:
        message: printed at each signal recorded; says when the process will stop.

    Attributes:
        signal: the last signal recorded; None if there was none.
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
