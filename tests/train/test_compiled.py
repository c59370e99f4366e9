"""The compiled training program: nothing leaves the device while it runs."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from train.run import loop
from train.run.experiment import Experiment
from train.run_config import RunConfig
from train.training import chunk, in_memory
from train.training.state import LoopState

from .tiny_cnn import TinyCNN


@pytest.fixture
def experiment(monkeypatch, small_dataset):
    """Makes an experiment whose chunks are compiled loops, as on an accelerator."""
    monkeypatch.setattr(in_memory, "loops_are_fast", lambda: True)
    monkeypatch.setattr(models, "create", lambda name, **options: TinyCNN(**options))

    def make(**options):
        return Experiment(RunConfig(batch_size=16, **options), small_dataset)

    return make


@pytest.mark.parametrize(
    "options", [{}, {"optimizer": "lms-newton", "covariance_every": 2}]
)
@pytest.mark.parametrize("strategy", ["jit", "mesh", "pmap", "shard_map"])
def test_chunks_move_nothing_between_host_and_device(experiment, strategy, options):
    chunks = experiment(parallel=strategy, chunk_steps=1, **options)
    progress = chunks.start()
    for step in (0, 1):  # Compiled and loaded.
        progress = chunks.train_chunk(progress, step, 1)
    with jax.transfer_guard("disallow_explicit"):
        with pytest.raises(Exception, match="Disallowed host-to-device"):
            jax.device_put(np.zeros(3)).block_until_ready()
        progress = chunks.train_chunk(progress, 2, 1)
    assert int(progress.state.step) == 3


def test_chunks_with_captures_are_the_same_on_several_devices(experiment):
    found = {}
    for strategy in ("jit", "mesh", "pmap", "shard_map"):
        chunks = experiment(
            parallel=strategy, optimizer="lms-newton", covariance_every=2
        )
        state, metric_sums = chunks.train_chunk(chunks.start(), 0, 3)
        found[strategy] = jax.device_get((state.params, metric_sums["loss"]))
    one = found.pop("jit")
    for state in found.values():
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            state,
            one,
        )


def test_no_step_decides_whether_it_captures(experiment):
    """Steps of whole periods and single ones are the same, and have no conditional."""
    one = experiment(parallel="jit", optimizer="lms-newton", covariance_every=2)
    progress = one.start()
    periods, capturing, plain = (
        chunk_program(one, progress, pattern).compile().as_text()
        for pattern in (
            chunk.Pattern(((True, 1), (False, 1)), repeats=True),
            chunk.Pattern(((True, 1),)),
            chunk.Pattern(((False, 1),), repeats=True),
        )
    )
    assert not re.search(r"\bconditional\(", periods + capturing + plain)
    assert capturing.count(" dot(") > plain.count(" dot(")

    whole = jax.device_get(one.train_chunk(one.start(), 0, 3))
    for step in range(3):
        progress = one.train_chunk(progress, step, 1)
    # Three steps are a period and a capture.
    assert one._trainer._chunk_program.cache_info().currsize == 3
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        jax.device_get(progress.state.params),
        whole.state.params,
    )


def chunk_program(experiment, progress, pattern):
    """The lowered program of a chunk of the first epoch."""
    trainer = experiment._trainer
    if isinstance(pattern, int):
        pattern = chunk.Pattern(((None, pattern),))
    arrays = (trainer._order(0), *trainer._train, trainer._number(1))
    return trainer._chunk_program(pattern).lower(*progress, *arrays)


def test_a_chunk_is_one_loop_that_writes_the_state_in_place(experiment):
    one = experiment(parallel="jit")
    progress = one.start()
    assert one.chunk_lengths() == [3]

    lowered = chunk_program(one, progress, 3)

    images = one._trainer._train[0]
    assert images.dtype == jnp.uint8
    text = lowered.as_text()
    assert "callback" not in text
    # One loop: unrolled steps would repeat the convolution for each of three.
    longer = chunk_program(one, progress, 2).as_text()
    assert text.count("stablehlo.convolution") == longer.count("stablehlo.convolution")
    assert alias_bytes(lowered) == state_bytes(progress)


def test_a_loop_of_periods_writes_the_state_in_place(experiment):
    one = experiment(parallel="jit", optimizer="lms-newton", covariance_every=3)
    progress = one.start()
    (pattern,) = {pattern for pattern, _ in chunk.calls(0, 3, 3, loops=True)}
    assert alias_bytes(chunk_program(one, progress, pattern)) == state_bytes(progress)


def alias_bytes(lowered):
    return lowered.compile().memory_analysis().alias_size_in_bytes


def state_bytes(progress):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(progress.state))


@pytest.mark.parametrize("schedule", ["constant", "steps", "cosine"])
def test_one_program_serves_all_learning_rates(experiment, schedule):
    def lowered(learning_rate):
        one = experiment(
            learning_rate=learning_rate, schedule=schedule, warmup_epochs=1
        )
        return chunk_program(one, one.start(), 1).as_text()

    assert lowered(0.01) == lowered(0.02)


def test_the_program_takes_the_steps_of_an_optimizer_made_with_its_rate(
    experiment, monkeypatch
):
    params = []
    for made_before in (False, True):
        one = experiment(optimizer="lms-newton", learning_rate=0.02, schedule="cosine")
        if made_before:  # Like a custom optimizer.
            own = types.SimpleNamespace(is_reference=lambda name: True)
            monkeypatch.setattr("train.run.experiment.own_code", own)
        progress = one.start()
        for step in range(2):
            progress = one.train_chunk(progress, step, 1)
        params.append(progress.state.params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), *params
    )


def test_convolutions_are_in_bfloat16_and_the_state_in_float32(experiment):
    one = experiment(parallel="jit", dtype="bfloat16")
    progress = one.start()
    text = chunk_program(one, progress, 1).as_text()
    convolutions = [line for line in text.splitlines() if ".convolution" in line]
    assert convolutions
    for line in convolutions:
        assert "bf16" in line and "f32" not in line
    leaves = jax.tree.leaves(one.train_chunk(progress, 0, 1).state)
    assert {leaf.dtype.name for leaf in leaves} == {"float32", "int32"}


def test_a_chunks_metrics_are_fetched_while_the_next_one_runs(monkeypatch):
    events = []

    class Total:
        def __init__(self, step):
            self.step = step

        def __float__(self):
            events.append(f"read {self.step}")
            return 0.0

    class FakeState:
        step = 0

    class FakeExperiment:
        steps_per_epoch = 6

        def chunk_lengths(self, first):
            return [2, 2, 2]

        def train_chunk(self, progress, first, num_steps):
            step = progress.metric_sums["loss"].step + num_steps
            events.append(f"start {step}")
            return LoopState(FakeState(), {"loss": Total(step), "finite_steps": 6})

        def count_finite(self, progress):
            return progress

        def close(self):
            events.append("close")

    monkeypatch.setattr(loop, "_row", lambda experiment, progress, step: {})
    loop.fit(
        FakeExperiment(),
        LoopState(FakeState(), {"loss": Total(0), "finite_steps": 0}),
        1,
        stopped=lambda: False,
        on_epoch=lambda progress, row: None,
        on_divergence=lambda step: None,
    )
    assert events == ["start 2", "start 4", "read 2", "start 6", "read 4", "close"]
