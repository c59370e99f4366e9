"""Keeps Orbax from printing tracebacks of an error that it also raises."""

import contextlib
import logging
import sys
import traceback
import warnings
from collections.abc import Iterator
from types import TracebackType
from typing import Any

# Logged by a thread of Orbax, whose error is raised when the thread is joined.
_OF_A_THREAD = "_SignalingThread.run() raised an exception"

# Python warns of a write that had not begun when another one failed.
_UNBEGUN_WRITE = r"coroutine 'async_serialize_from_host\b.*' was never awaited"


@contextlib.contextmanager
def silenced(errors: type[BaseException]) -> Iterator[None]:
    """Within this context, Orbax prints nothing about one of `errors` that is raised.

    What its threads log is held back, and dropped if the body raises one of `errors`.

    After such an error, Orbax may still be writing other arrays when the body has
    ended. The threads of these writes log their errors; asyncio logs that these errors
    were never retrieved; and each write, when it ends, calls an event loop that is
    already closed. So after such an error, the filters of these three kinds of messages
    stay in place: the first until the next save, the second until a save succeeds, and
    the third for good. After any other error, the second and the third stay in place,
    too. A fourth filter, for Python's warnings about writes that never began, stays in
    place even without an error.

    Args:
        errors: type of the errors that the caller reports.
    """
    held: list[logging.LogRecord] = []
    orbax, asyncio = logging.getLogger("absl"), logging.getLogger("asyncio")
    hook = sys.unraisablehook

    def hold_back(record: logging.LogRecord) -> bool:
        if _is_of_no_thread(record):
            return True
        held.append(record)
        return False

    def report(unraisable: Any) -> None:
        if not _is_late_call(unraisable.exc_traceback):
            hook(unraisable)

    orbax.removeFilter(_is_of_no_thread)
    orbax.addFilter(hold_back)
    asyncio.addFilter(_is_no_late_error)
    sys.unraisablehook = report
    # Each new filter makes Python repeat the warnings that it shows only once.
    if all(
        getattr(each[1], "pattern", None) != _UNBEGUN_WRITE for each in warnings.filters
    ):
        warnings.filterwarnings("ignore", _UNBEGUN_WRITE, RuntimeWarning)
    try:
        yield
    except errors:
        held.clear()
        orbax.addFilter(_is_of_no_thread)
        raise
    else:
        asyncio.removeFilter(_is_no_late_error)
        sys.unraisablehook = hook
    finally:
        orbax.removeFilter(hold_back)
        for record in held:
            orbax.handle(record)


def _is_of_no_thread(record: logging.LogRecord) -> bool:
    return _OF_A_THREAD not in str(record.msg)


def _is_late_call(trace: TracebackType | None) -> bool:
    """Returns whether native code, without a Python caller, called a closed loop."""
    names = [frame.name for frame in traceback.extract_tb(trace)]
    return names == ["call_soon_threadsafe", "_check_closed"]


def _is_no_late_error(record: logging.LogRecord) -> bool:
    """Returns False for messages about errors of Orbax that were never retrieved.

    Those of TensorStore's own threads have no traceback, but name the temporary folder.
    """
    if record.exc_info is None or "was never retrieved" not in record.getMessage():
        return True
    frames = traceback.extract_tb(record.exc_info[2])
    in_orbax = any("/orbax/" in frame.filename for frame in frames)
    return not in_orbax and ".orbax-checkpoint-tmp" not in str(record.exc_info[1])
