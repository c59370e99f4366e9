"""Open captures, and the layer calls in progress in a thread."""

import contextlib
import contextvars
import dataclasses
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

from insgd_optax._compat import trace_context

# (layer, its call's arguments by name) -> what to sow: an array or a pytree of arrays.
Take = Callable[[Any, Mapping[str, Any]], Any]

# A part of the key of every JAX trace cache. What a function sows depends on the
# settings of the captures around it, which JAX cannot see among its arguments.
_settings = trace_context()


@dataclasses.dataclass(frozen=True, eq=False)
class Capture:
    """The settings of one entered context."""

    library: str  # whose layers: "linen" or "nnx"
    name: str  # what is sown; the innermost capture of each name is active
    layers: Mapping[type, Take]
    _: dataclasses.KW_ONLY
    settings: Any = None  # for `sow_input_norm` and `sow_input_covariance`
    # Hashable settings, compared by value: a trace is reused under an equal key. The
    # default equals no other key, so that a `take` may hold tracers.
    key: Hashable = dataclasses.field(default_factory=object)

    def take(self, layer: Any) -> Take | None:
        """The function for this layer's class; None if the class sows nothing."""
        for kind in type(layer).__mro__:
            if kind in self.layers:
                return self.layers[kind]
        return None


class _Opened:
    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self.thread = threading.get_ident()
        self.is_closed = False
        self.exits = contextlib.ExitStack()


# By task, not by thread: asyncio interleaves the contexts of its tasks.
_open: contextvars.ContextVar[tuple[_Opened, ...]] = contextvars.ContextVar(
    "insgd_optax_open_captures", default=()
)


class _Entered(threading.local):
    def __init__(self) -> None:
        self.stack: list[_Opened] = []


_entered = _Entered()


@contextlib.contextmanager
def opened(
    capture: Capture, *others: contextlib.AbstractContextManager[Any]
) -> Iterator[None]:
    """Opens a capture for this task, and `others` with it."""
    entry = _Opened(capture)
    _open.set((*_open.get(), entry))
    try:
        entry.exits.enter_context(_settings(_key()))
        for other in others:
            entry.exits.enter_context(other)
        _entered.stack.append(entry)
        yield
    finally:
        entry.is_closed = True
        _open.set(tuple(each for each in _open.get() if each is not entry))
        if entry not in _entered.stack:
            entry.exits.close()
        # JAX and Flax keep stacks of their own, by thread, which must be unwound in
        # order: a context that another task entered later may still be open.
        while _entered.stack and _entered.stack[-1].is_closed:
            _entered.stack.pop().exits.close()


def _active() -> dict[tuple[str, str], Capture]:
    """The innermost open capture of each library and name."""
    thread = threading.get_ident()
    return {
        (each.capture.library, each.capture.name): each.capture
        for each in _open.get()
        if each.thread == thread and not each.is_closed
    }


def active_captures(library: str) -> list[Capture]:
    """The captures that a layer of this library sows for, one per name."""
    return [capture for (own, _), capture in _active().items() if own == library]


def active_capture(library: str, name: str) -> Capture | None:
    """The capture that a layer of this library sows this name for, if any."""
    return _active().get((library, name))


def _key() -> Hashable:
    active = _active()
    return tuple((kind, active[kind].key) for kind in sorted(active)) or None


@contextlib.contextmanager
def task_settings() -> Iterator[None]:
    """Sets JAX's trace context to this task's captures."""
    key = _key()
    if _settings.value == key:
        yield
    else:
        # Another task of this thread has entered or left a context since.
        with _settings(key):
            yield


class _Call:
    """A layer's call in progress."""

    def __init__(self, layer: Hashable) -> None:
        self.layer = layer
        self.is_innermost = True


class Calls(threading.local):
    """The calls in progress in this thread, the innermost last."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._intercepted: list[Any] = []
        self.started: weakref.WeakSet[Any] = weakref.WeakSet()  # root scopes

    def is_intercepted(self, context: Any) -> bool:
        """Whether this call is already being handled."""
        return bool(self._intercepted) and self._intercepted[-1] is context

    @contextlib.contextmanager
    def intercepted(self, context: Any) -> Iterator[bool]:
        """Marks a call as being handled; yields whether it is the outermost."""
        self._intercepted.append(context)
        try:
            yield len(self._intercepted) == 1
        finally:
            self._intercepted.pop()

    def run(
        self, layers: Sequence[Hashable], function: Callable[[], Any]
    ) -> tuple[Any, list[bool]]:
        """Runs one call of a layer, which has one key in `layers` for each capture.

        Returns its output and, for each key, whether this is its innermost call.

        A subclass may change the input before it calls `super().__call__`. The kernel
        sees the input of the innermost call, so only that one is sown.
        """
        for outer in self._calls:
            if outer.layer in layers:
                outer.is_innermost = False
        calls = [_Call(layer) for layer in layers]
        height = len(self._calls)
        self._calls.extend(calls)
        try:
            return function(), [call.is_innermost for call in calls]
        finally:
            del self._calls[height:]
