"""One device, eight devices and two processes of four train alike."""

import functools
import pickle
import re

import jax
import numpy as np
import pytest

from train.training import optimizers, parallel
from train.training.state import create_state
from train.training.step import step_of

from . import pipeline, processes
from .tiny_cnn import TinyCNN

ALL_REDUCE = re.compile(r" all-reduce(?:-start)?\(")
TOLERANCE = {"float64": 1e-8, "float32": 1e-5}


@functools.cache
def on_one_device(batch_norm, dtype, num_steps):
    return pipeline.run_steps(parallel.create("jit"), batch_norm, dtype, num_steps)


def check_as_on_one_device(name, result):
    """Compares arrays relative to their largest entries, and P relative to itself."""
    _, *options = pipeline.CASES[name]
    dtype = options[1]
    with pipeline.compiled_for(dtype):
        expected, expected_powers = on_one_device(*options)
    trained, powers = result
    assert trained[0]["Dense_0"]["kernel"].dtype == dtype

    def check(got, want):
        atol = TOLERANCE[dtype] * np.abs(want).max()
        np.testing.assert_allclose(got, want, rtol=0, atol=atol)

    jax.tree.map(check, trained, expected)
    assert powers.keys() == expected_powers.keys()
    for weight, power in powers.items():
        # P is a sum over thousands of float32 entries, here in a different order.
        np.testing.assert_allclose(
            power, expected_powers[weight], rtol=TOLERANCE[dtype]
        )


@pytest.mark.parametrize("name", pipeline.CASES)
def test_eight_devices_train_like_one(name):
    assert parallel.create(pipeline.CASES[name][0]).num_devices == 8
    check_as_on_one_device(name, pipeline.run_case(name))


@pytest.mark.slow
def test_two_processes_of_four_devices_train_like_one_device(tmp_path):
    address = processes.free_address()
    statuses, output = processes.finish(
        [
            ["tests.train.pipeline", address, str(number), str(tmp_path / "results")]
            for number in range(2)
        ],
        tmp_path,
    )
    assert statuses == [0, 0], output
    results = pickle.loads((tmp_path / "results").read_bytes())
    assert len(results) == 8
    for name, result in results.items():
        check_as_on_one_device(name, result)


def test_by_default_all_devices_are_used():
    assert parallel.create("auto").name == "mesh"
    assert parallel.create("auto").num_devices == 8


@pytest.mark.parametrize("strategy", ["mesh", "shard_map"])
def test_each_device_computes_only_its_share(strategy):
    """No device has the whole batch: an activation has the size of a share."""
    devices = parallel.create(strategy)

    def program(state, images):
        share = devices.local_shard(images)
        shapes.append(share.shape)
        return state + (share @ state).mean() * 0

    shapes = []
    state = devices.replicate(np.ones((32, 32), np.float32))
    images = devices.replicate(np.ones((64, 32), np.float32))
    compiled = devices.compile(program)
    np.testing.assert_array_equal(compiled(state, images), state)
    text = jax.jit(compiled).lower(state, images).compile().as_text()
    assert "f32[8,32]" in text
    assert shapes[0] == ((8, 32) if strategy == "shard_map" else (64, 32))


@pytest.mark.parametrize("strategy", ["mesh", "shard_map"])
@pytest.mark.parametrize(("batch_norm", "expected"), [(False, 1), (True, 3)])
def test_a_step_has_one_collective_and_two_more_per_batch_normalization(
    strategy, batch_norm, expected
):
    text = compiled_step(strategy, pipeline.create_optimizer(), batch_norm)
    # Batch normalization needs the whole batch's statistics in the forward pass, and
    # their gradients in the backward pass.
    assert len(ALL_REDUCE.findall(text)) == expected


@pytest.mark.parametrize(
    ("strategy", "of_covariances"), [("mesh", 2), ("shard_map", 0)]
)
def test_covariances_are_reduced_in_captures_or_with_the_gradients(
    strategy, of_covariances
):
    optimizer = optimizers.create("lms-newton", 0.1, optimizers.OptimizerConfig())
    text = compiled_step(strategy, optimizer, batch_norm=False)
    entry = text[text.index("\nENTRY") :]
    assert len(ALL_REDUCE.findall(entry)) == 1
    # The others are in the branches of conditionals, which only a capture takes.
    assert len(ALL_REDUCE.findall(text)) == 1 + of_covariances


def compiled_step(strategy, optimizer, batch_norm):
    """The compiled program of a training step."""
    devices = parallel.create(strategy)
    model = TinyCNN(batch_norm, axis_name=devices.axis_name)
    state = create_state(model, optimizer.tx, jax.random.key(0), (8, 8, 1))
    batch = np.ones((16, 8, 8, 1), np.float32), np.zeros(16, np.int32)

    def program(state, batch):
        step = step_of(optimizer, axis_name=devices.axis_name)
        return step(state, devices.local_shard(batch), jax.random.key(0))

    arrays = devices.replicate((state, batch))
    return devices.compile(program).lower(*arrays).compile().as_text()


@pytest.mark.parametrize("strategy", ["jit", "pmap"])
def test_strategies_for_one_process_are_refused_in_several(monkeypatch, strategy):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(parallel.UserError, match="--parallel mesh or shard_map"):
        parallel.create(strategy)
