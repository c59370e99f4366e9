"""An epoch as one program: the samples that it sees, in chunks of any length."""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.data.images.augment import Augmentation
from train.data.types import Preprocessing
from train.run.experiment import chunk_lengths
from train.training import chunk, in_memory
from train.training.step import zero_metric_sums

NUM_SAMPLES, BATCH_SIZE, STEPS = 23, 4, 5


@flax.struct.dataclass
class Recorder:
    """Stands in for a train state: records the samples and keys that it is given."""

    step: jax.Array
    seen: jax.Array  # shape=(epochs, samples)
    keys: jax.Array  # shape=(epochs, STEPS)
    pixels: jax.Array  # shape=(epochs, STEPS): sums of the batches


def record(state, batch, rng, learning_rate):
    del learning_rate
    images, labels = batch
    where = state.step // STEPS, state.step % STEPS
    state = Recorder(
        step=state.step + 1,
        seen=state.seen.at[where[0], labels].add(1),
        keys=state.keys.at[where].set(jax.random.bits(rng)),
        pixels=state.pixels.at[where].set(images.sum()),
    )
    return state, {"loss": labels.mean(), "top1": jnp.ones(())}


@functools.cache
def program(num_steps, loops_are_fast):
    """A compiled chunk; tracing decides whether it is a loop."""
    assert in_memory.loops_are_fast() == loops_are_fast
    return jax.jit(
        functools.partial(
            in_memory.train_chunk,
            pattern=chunk.Pattern(((None, num_steps),)),
            make_step=lambda captures: record,
            batch_size=BATCH_SIZE,
            steps_per_epoch=STEPS,
            preprocessing=Preprocessing((0.5,), (0.25,), Augmentation(1, flip=True)),
        )
    )


def run(chunks):
    images = np.arange(NUM_SAMPLES * 64).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = np.arange(NUM_SAMPLES, dtype=np.int32)
    state = Recorder(
        jnp.zeros((), jnp.int32),
        jnp.zeros((2, NUM_SAMPLES), jnp.int32),
        jnp.zeros((2, STEPS), jnp.uint32),
        jnp.zeros((2, STEPS)),
    )
    metric_sums = []
    progress = (state, zero_metric_sums())
    rng = jax.random.key(0)
    for num_steps in chunks:
        order = in_memory.shuffle(rng, progress[0].step // STEPS, NUM_SAMPLES)
        arrays = (order, images, labels, rng, jnp.zeros(()), 1)
        progress = program(num_steps, in_memory.loops_are_fast())(*progress, *arrays)
        metric_sums.append(progress.metric_sums)
    return progress.state, metric_sums


def test_an_epoch_sees_each_sample_at_most_once_in_an_order_of_its_own():
    state, metric_sums = run([STEPS, STEPS])

    seen = np.asarray(state.seen)
    assert seen.max() == 1
    assert seen.sum(axis=1).tolist() == [BATCH_SIZE * STEPS] * 2
    assert seen[0].tolist() != seen[1].tolist()  # Different samples are left out.
    # Sums restart in each epoch: mean label times steps, of this epoch alone.
    for row, total in zip(seen, metric_sums, strict=True):
        expected = row @ np.arange(NUM_SAMPLES) / BATCH_SIZE
        assert total["loss"] == pytest.approx(expected)
        assert total["top1"] == STEPS


def test_every_step_has_its_own_key_and_augmentation():
    state, _ = run([STEPS, STEPS])
    assert len(set(np.asarray(state.keys).ravel().tolist())) == 2 * STEPS
    assert len(set(np.asarray(state.pixels).ravel().tolist())) == 2 * STEPS


@pytest.mark.parametrize("loop", [True, False])
def test_chunk_lengths_do_not_change_the_result(monkeypatch, loop):
    monkeypatch.setattr(in_memory, "loops_are_fast", lambda: loop)
    whole, whole_totals = run([5, 5])
    parts, parts_totals = run([2, 3, 2, 2, 1])

    jax.tree.map(np.testing.assert_array_equal, parts, whole)
    jax.tree.map(
        np.testing.assert_array_equal,
        [parts_totals[1], parts_totals[4]],
        whole_totals,
    )


@pytest.mark.parametrize("steps_per_epoch", [1, 2, 11, 97, 390, 391])
@pytest.mark.parametrize("most", [1, 7, 50, 1000])
def test_chunks_fill_the_epoch_with_few_lengths_near_the_maximum(steps_per_epoch, most):
    lengths = chunk_lengths(steps_per_epoch, most)
    assert sum(lengths) == steps_per_epoch
    assert max(lengths) <= most
    assert max(lengths) > min(most, steps_per_epoch) // 2
    assert len(set(lengths)) <= 2
    assert lengths == sorted(lengths, reverse=True)
    # A period that does not fit into a chunk has no effect.
    assert chunk_lengths(steps_per_epoch, most, most + 1) == lengths


def test_chunks_consist_of_whole_periods():
    assert chunk_lengths(390, 50, period=10) == [50] * 7 + [40]
    assert chunk_lengths(394, 50, period=10, first=394) == [6] + [50] * 7 + [38]
    assert chunk_lengths(97, 50, period=20, first=97) == [3, 40, 40, 14]
    assert chunk_lengths(3, 50, period=10, first=3) == [3]
    assert chunk_lengths(3, 50, period=2, first=3) == [1, 2]
    for first in range(0, 7 * 23, 23):
        lengths = chunk_lengths(23, 10, 7, first)
        assert sum(lengths) == 23
        assert not any((first + np.cumsum(lengths)[:-1]) % 7)
