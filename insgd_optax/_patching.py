"""Temporarily replaces `__call__` of classes; thread-safe."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Call = Callable[..., Any]
_CALL = "__call__"


class _Replaced:
    """A class whose `__call__` is replaced."""

    def __init__(self, own: Call | None) -> None:
        self.own = own  # None for a class that inherits its `__call__`
        self.users = 0  # how many open contexts need it replaced


_lock = threading.Lock()
_replaced: dict[type, _Replaced] = {}


@contextlib.contextmanager
def replaced_calls(
    kinds: Iterable[type], replacement: Callable[[Call], Call]
) -> Iterator[None]:
    """Replaces the `__call__` of classes, and of their subclasses that have their own.

    All threads see the replacement, and a class has one replacement however many
    contexts are open: it must check by itself whether a capture is open where it is
    called. Classes get their own `__call__` back when the last context ends.

    Args:
        kinds: the classes.
        replacement: maps a class's `__call__` to the function that replaces it.
    """
    with _lock:
        # Fixed now: subclasses defined while the context is open are not patched and
        # must not be restored.
        found = list(_with_overriding_subclasses(kinds))
        for kind in found:
            if kind not in _replaced:
                _replaced[kind] = _Replaced(vars(kind).get(_CALL))
                setattr(kind, _CALL, replacement(getattr(kind, _CALL)))
            _replaced[kind].users += 1
    try:
        yield
    finally:
        with _lock:
            for kind in found:
                _replaced[kind].users -= 1
                if _replaced[kind].users == 0:
                    own = _replaced.pop(kind).own
                    if own is None:
                        delattr(kind, _CALL)
                    else:
                        setattr(kind, _CALL, own)


def _with_overriding_subclasses(kinds: Iterable[type]) -> dict[type, None]:
    """The classes, each once, and below them those that define `__call__`."""
    found = dict.fromkeys(kinds)
    below = list(found)
    subclass: type
    while below:
        for subclass in type.__subclasses__(below.pop()):
            below.append(subclass)
            if _CALL in vars(subclass):
                found[subclass] = None
    return found
