"""Times several seeds in one program, by `jax.vmap`, against one seed after another.

python -m benchmarks.pages.vmapped_seeds
"""

import jax
import jax.numpy as jnp
import numpy as np

import models
from train.benchmark import timing
from train.training import optimizers
from train.training.state import create_state
from train.training.step import train_step

SEEDS, ROUNDS, BATCH_SIZE = 4, 30, 128


def measure(image_shape: tuple[int, int, int]) -> timing.Ratio:
    """Compares the time of a vmapped step with that of one step per seed in turn."""
    optimizer = optimizers.create(
        "insgd-l2",
        1e-3,
        optimizers.OptimizerConfig(),
    )
    model = models.create("custom_cnn")
    rng = np.random.default_rng(0)
    images = rng.normal(size=(BATCH_SIZE, *image_shape)).astype(np.float32)
    batch = jax.device_put((images, rng.integers(0, 10, BATCH_SIZE, np.int32)))
    keys = jax.random.split(jax.random.key(0), SEEDS)

    def step(state, key):
        return train_step(state, batch, key, capture=optimizer.capture)[0]

    single = [create_state(model, optimizer.tx, key, image_shape) for key in keys]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *single)
    one, several = jax.jit(step), jax.jit(jax.vmap(step))

    def one_by_one(times):
        for _ in range(times):
            single[:] = [
                one(state, key) for state, key in zip(single, keys, strict=True)
            ]
        jax.block_until_ready(single)

    def vmapped(times):
        nonlocal stacked
        for _ in range(times):
            stacked = several(stacked, keys)
        jax.block_until_ready(stacked)

    times = timing.interleave(
        {"one by one": one_by_one, "vmapped": vmapped},
        ROUNDS,
        np.random.default_rng(0),
    )
    return timing.compare(
        times["vmapped"].seconds,
        times["one by one"].seconds,
        np.random.default_rng(0),
    )


def main() -> None:
    print(f"{jax.devices()[0].device_kind}, {SEEDS} seeds: time by vmap / one by one")
    for shape in ((8, 8, 1), (32, 32, 3)):
        ratio = measure(shape)
        print(
            f"{shape[0]}x{shape[1]}: {ratio.of_medians:.2f} (95 %: "
            f"{ratio.interval[0]:.2f} to {ratio.interval[1]:.2f}), paired "
            f"{ratio.paired:.2f}"
        )


if __name__ == "__main__":
    main()
