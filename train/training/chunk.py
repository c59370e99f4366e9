"""A chunk of training steps, divided into compiled programs at its captures.

Steps with and without a capture are different code. On accelerators, a conditional
between the two would cost time in every step, since the host waits for its value.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import jax

Carry = TypeVar("Carry")


class Pattern(NamedTuple):
    """Steps that one program takes.

    Attributes:
        segments: for consecutive steps, `captures` of `train.training.step.step_of` and
            their number.
        repeats: whether the program repeats them, as often as an argument says, so that
            one program serves chunks of different lengths.
    """

    segments: tuple[tuple[bool | None, int], ...]
    repeats: bool = False


_CAPTURE = Pattern(((True, 1),))
_PLAIN = Pattern(((False, 1),))
_PLAIN_LOOP = Pattern(((False, 1),), repeats=True)


def captures(step: int, period: int) -> bool | None:
    """Returns whether a step captures; None if `period` is 1: all are the same."""
    return None if period == 1 else step % period == 0


def calls(
    step: int, num_steps: int, period: int, loops: bool
) -> Iterator[tuple[Pattern, int]]:
    """Yields the programs to call for a chunk, and how often each repeats its steps.

    Args:
        step: the first step.
        num_steps: the number of steps.
        period: steps whose number is divisible by this one capture; 1 if all steps are
            the same.
        loops: whether programs may contain loops of steps.
    """
    if period == 1:
        yield Pattern(((None, num_steps),)), 1
    elif not loops:
        for one in range(step, step + num_steps):
            yield (_CAPTURE if captures(one, period) else _PLAIN), 1
    else:
        before = min(-step % period, num_steps)
        periods, after = divmod(num_steps - before, period)
        if before:
            yield _PLAIN_LOOP, before
        if periods:
            yield Pattern(((True, 1), (False, period - 1)), repeats=True), periods
        if after:
            yield _CAPTURE, 1
        if after > 1:
            yield _PLAIN_LOOP, after - 1


def run(
    pattern: Pattern,
    times: jax.Array | int,
    body: Callable[[bool | None], Callable[[Carry], Carry]],
    carry: Carry,
    loops: bool,
) -> Carry:
    """Takes the steps of a pattern, within a program, and returns the last carry.

    Args:
        pattern: the steps.
        times: how often they are repeated; without effect if the pattern does not
            repeat them.
        body: makes a step from `captures`.
        carry: what a step takes and returns.
        loops: whether the steps of a segment are a loop, or are unrolled.
    """

    def segment(step: Callable[[Carry], Carry], length: int, carry: Carry) -> Carry:
        if loops and length > 1:
            # The number of iterations is known, so the host need not wait for the
            # condition of the loop.
            return jax.lax.scan(
                lambda carry, _: (step(carry), None), carry, length=length
            )[0]
        for _ in range(length):
            carry = step(carry)
        return carry

    def all_segments(carry: Carry) -> Carry:
        for which, length in pattern.segments:
            carry = segment(body(which), length, carry)
        return carry

    if not pattern.repeats:
        return all_segments(carry)
    return jax.lax.fori_loop(0, times, lambda _, carry: all_segments(carry), carry)
