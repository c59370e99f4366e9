"""Ctrl-C and SIGTERM as a wish to stop, not as an exception in mid-air."""

import signal
import sys
from types import FrameType
from typing import Self


class StopRequest:
    """Within this context, a signal is noted; a second Ctrl-C interrupts at once.

    Attributes:
        signal: the signal that came; None if none did.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous = {}

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
        print(
            "\nStopping after this chunk of steps, to save. Ctrl-C once more stops at "
            "once, without saving.",
            file=sys.stderr,
        )
