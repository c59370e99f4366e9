"""A warning where `optax.MultiSteps` accumulates gradients but no input statistics."""

import contextlib
import contextvars
import warnings
from collections.abc import Iterator

from insgd_optax._compat import is_within_optax_multi_steps

_accumulated = contextvars.ContextVar("accumulated", default=False)


@contextlib.contextmanager
def accumulated() -> Iterator[None]:
    """Within this context a wrapper accumulates the input statistics, too."""
    token = _accumulated.set(True)
    try:
        yield
    finally:
        _accumulated.reset(token)


def warn_of_optax_multi_steps(statistics: str) -> None:
    """Called by an `init` whose `update` will need the statistics of all micro-batches.

    Args:
        statistics: what they are, for the message.
    """
    if not _accumulated.get() and is_within_optax_multi_steps():
        warnings.warn(
            f"optax.MultiSteps averages the gradients of k micro-batches, but passes on"
            f" only the {statistics} of the last one: use insgd_optax.MultiSteps"
            " instead",
            stacklevel=3,
        )
