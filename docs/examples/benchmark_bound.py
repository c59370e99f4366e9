"""A step of INSGD with the bound on its learning rate, beside one without.

python docs/examples/benchmark_bound.py
"""

import functools
import sys
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))  # The application's folder.

import models
from train import optimizers, timing
from train.state import create_state
from train.step import train_step

ROUNDS, BATCH_SIZE = 40, 128


def stepper(polyak_factor):
    """Steps of the custom CNN on one batch of random 32x32 images."""
    optimizer = optimizers.create(
        "insgd-l2",
        1e-4,
        momentum=0.9,
        weight_decay=5e-4,
        scope="kernel",
        normalizer="log",
        polyak_factor=polyak_factor,
    )
    rng = np.random.default_rng(0)
    images = rng.normal(size=(BATCH_SIZE, 32, 32, 3)).astype(np.float32)
    batch = jax.device_put((images, rng.integers(0, 10, BATCH_SIZE, np.int32)))
    state = create_state(
        models.create("custom_cnn"), optimizer.tx, jax.random.key(0), (32, 32, 3)
    )

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state):
        rng = jax.random.key(1)
        return train_step(state, batch, rng, capture=optimizer.capture)[0]

    memory = step.lower(state).compile().memory_analysis().temp_size_in_bytes

    def run(times):
        nonlocal state
        for _ in range(times):
            state = step(state)
        jax.block_until_ready(state)

    return run, memory


def main() -> None:
    rng = np.random.default_rng(0)
    (free, free_memory), (bound, bound_memory) = stepper(None), stepper(0.3)
    times = timing.interleave({"free": free, "bounded": bound}, ROUNDS, rng)
    for kind in ("seconds", "processor_seconds"):
        ratio = timing.compare(
            getattr(times["bounded"], kind), getattr(times["free"], kind), rng
        )
        low, high = ratio.interval
        print(f"{kind}: {ratio.of_medians:.3f} (95 %: {low:.3f} to {high:.3f})")
    print(f"temporary memory: {bound_memory / free_memory:.4f}")
    print(jax.devices()[0].device_kind, jax.__version__)


if __name__ == "__main__":
    main()
