"""The training pipeline, in a few lines, on any devices; also as one of two processes.

`python -m tests.train.pipeline HOST:PORT PROCESS_ID FILE` takes the steps of all
`CASES` on four devices of its own and four of another process, and writes the
results.
"""

import contextlib
import functools
import pickle
import sys

import jax
import jax.numpy as jnp

import insgd_optax
from tests.jax_settings import jax_settings
from train.training import chunk, distributed, in_memory, optimizers, parallel
from train.training.state import LoopState, create_state
from train.training.step import train_step

from .stripes import stripes
from .tiny_cnn import TinyCNN

# By name: strategy, batch normalization, dtype, steps. Many steps need float64, because
# with batch normalization, rounding in float32 grows from step to step.
CASES = {
    f"{strategy}-{dtype}-{'bn' if batch_norm else 'plain'}": (
        strategy,
        batch_norm,
        dtype,
        steps,
    )
    for strategy in ("mesh", "shard_map", "pmap")
    for batch_norm in (True, False)
    for dtype, steps in (("float64", 20), ("float32", 1))
}


def create_optimizer():
    """INSGD, with biases and batch normalizations scaled too."""
    return optimizers.create(
        "insgd-l2",
        0.1,
        optimizers.OptimizerConfig(weight_decay=0.01, scope="layer"),
    )


@functools.cache
def first_state(batch_norm, dtype):
    """The state before the first step, on the host: devices may donate theirs."""
    model, tx = TinyCNN(batch_norm, dtype=dtype), create_optimizer().tx
    state = create_state(model, tx, jax.random.key(0), stripes().image_shape)
    params, batch_stats = jax.tree.map(
        lambda w: w.astype(dtype), (state.params, state.batch_stats)
    )
    state = state.replace(
        params=params, opt_state=tx.init(params), batch_stats=batch_stats
    )
    return jax.device_get(state)


def run_steps(devices, batch_norm, dtype, num_steps):
    """Everything that training changes in some steps, and P by weight."""
    dataset = stripes()
    optimizer = create_optimizer()
    model = TinyCNN(batch_norm, dtype=dtype, axis_name=devices.axis_name)
    state = first_state(batch_norm, dtype)
    state = state.replace(apply_fn=model.apply, tx=optimizer.tx)
    program = devices.compile(
        functools.partial(
            in_memory.train_chunk,
            pattern=chunk.Pattern(((None, 1),)),
            make_step=lambda captures: functools.partial(
                train_step, capture=optimizer.capture, axis_name=devices.axis_name
            ),
            batch_size=16,
            steps_per_epoch=3,
            preprocessing=dataset.preprocessing,
            local_shard=devices.local_shard,
        ),
        donate_state=True,
    )
    metric_sums = {name: jnp.zeros((), dtype) for name in ("loss", "top1")}
    rng = jax.random.key(5)
    arrays = devices.replicate((*dataset.train, rng, jnp.zeros(()), jnp.asarray(1)))
    progress = devices.replicate(LoopState(state, metric_sums))
    for step in range(num_steps):
        order = devices.replicate(
            in_memory.shuffle(rng, step // 3, len(dataset.train.labels))
        )
        progress = program(*progress, order, *arrays)
    state, metric_sums = jax.device_get(progress)
    assert state.step == num_steps
    trained = (state.params, jax.tree.leaves(state.opt_state), state.batch_stats)
    return (*trained, metric_sums), insgd_optax.input_powers(state.opt_state)


def run_case(name):
    """Takes the steps of a case of `CASES`."""
    strategy, batch_norm, dtype, num_steps = CASES[name]
    with compiled_for(dtype):
        return run_steps(parallel.create(strategy), batch_norm, dtype, num_steps)


@contextlib.contextmanager
def compiled_for(dtype):
    """Allows float64 or, for float32, compiles as users do.

    Without its optimizations, XLA sums float32 sequentially on a CPU, and P is off by
    3e-6.
    """
    wide = dtype == "float64"
    with jax_settings(jax_disable_most_optimizations=wide), jax.enable_x64(wide):
        yield


def main(coordinator, process_id, path):
    """Runs as one of two processes."""
    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_platforms", "cpu")
    distributed.start(
        distributed.Launch(
            coordinator=coordinator, num_processes=2, process_id=int(process_id)
        )
    )
    assert jax.device_count() == 8
    results = {name: run_case(name) for name in CASES if CASES[name][0] != "pmap"}
    if process_id == "0":
        with open(path, "wb") as file:
            pickle.dump(results, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
