"""What is under way in a thread: which captures are open, which layers are called."""

import threading
from collections.abc import Callable, Hashable
from typing import Any


class _Call:
    """A layer's call under way."""

    def __init__(self, layer: Hashable) -> None:
        self.layer = layer
        self.is_innermost = True


class OpenCalls(threading.local):
    """The captures and calls open in this thread, the innermost last."""

    def __init__(self) -> None:
        self.captures: list[Any] = []
        self._calls: list[_Call] = []

    def run(self, layer: Hashable, function: Callable[[], Any]) -> tuple[Any, bool]:
        """Runs one call of a layer; also tells whether it is the layer's innermost.

        A subclass may change the input before it calls `super().__call__`: what
        reaches the innermost call is what the kernel sees, and it alone is sown.
        """
        for outer in self._calls:
            if outer.layer == layer:
                outer.is_innermost = False
        call = _Call(layer)
        self._calls.append(call)
        try:
            return function(), call.is_innermost
        finally:
            self._calls.pop()
