"""The division of a chunk of steps into programs."""

import itertools

import jax
import jax.numpy as jnp
import pytest

from train.training import chunk

CHUNKS = list(itertools.product([0, 1, 3, 7], [1, 2, 3, 6, 13], [1, 2, 3, 10]))


def expanded(calls):
    """`captures` of each step."""
    found = []
    for pattern, times in calls:
        assert times == 1 or pattern.repeats
        for _ in range(times):
            for captures, length in pattern.segments:
                found += [captures] * length
    return found


@pytest.mark.parametrize("loops", [True, False])
def test_a_chunk_takes_each_of_its_steps_with_the_captures_of_the_period(loops):
    for step, num_steps, period in CHUNKS:
        wanted = [chunk.captures(one, period) for one in range(step, step + num_steps)]
        assert expanded(chunk.calls(step, num_steps, period, loops)) == wanted
    assert [chunk.captures(step, 3) for step in range(4)] == [True, False, False, True]
    assert chunk.captures(3, 1) is None


def test_three_programs_serve_all_chunks_of_a_period():
    """Without loops, two: one of a step with a capture, and one of a step without."""
    for loops, most in ((True, 3), (False, 2)):
        made = {
            pattern
            for step, num_steps in itertools.product(range(20), range(1, 30))
            for pattern, _ in chunk.calls(step, num_steps, 10, loops)
        }
        assert len(made) == most


def test_whole_periods_are_one_call():
    ((pattern, times),) = chunk.calls(20, 50, 10, loops=True)
    assert (times, pattern.segments) == (5, ((True, 1), (False, 9)))
    assert pattern.repeats


@pytest.mark.parametrize("loops", [True, False])
def test_a_program_takes_the_steps_of_its_pattern(loops):
    patterns = [
        (chunk.Pattern(((None, 3),)), 1),
        (chunk.Pattern(((False, 1),), repeats=True), 4),
        (chunk.Pattern(((True, 1), (False, 3)), repeats=True), 2),
    ]

    def body(captures):
        def step(carry):
            count, seen = carry
            return count + 1, seen.at[count].set({None: 1, True: 2, False: 3}[captures])

        return step

    for pattern, times in patterns:
        count, seen = jax.jit(
            lambda times, pattern=pattern: chunk.run(
                pattern, times, body, (0, jnp.zeros(20, int)), loops
            )
        )(times)
        wanted = [{None: 1, True: 2, False: 3}[c] for c in expanded([(pattern, times)])]
        assert count == len(wanted)
        assert seen.tolist() == wanted + [0] * (20 - len(wanted))
