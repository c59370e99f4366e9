"""Times the training loop against the bare step on one batch on the device.

The bare step takes images of three channels in ten classes, so the comparison is exact
only for such a DATASET, not for the default, digits, whose images have one channel.

python -m benchmarks.pages.training_loop [DATASET]
"""

import sys

import jax
import numpy as np

from train.benchmark import timing
from train.benchmark.measure import Stepper
from train.benchmark.workload import Workload
from train.run import loop
from train.run.experiment import Experiment
from train.run_config import RunConfig

STEPS, ROUNDS = 25, 60


def whole_loop(dataset):
    """Returns a program that runs the training loop, and the height of the images.

    The loop includes the evaluation after each epoch.
    """
    config = RunConfig(dataset=dataset, optimizer="insgd-l2", learning_rate=1e-4)
    loaded = config.load_dataset()
    experiment = Experiment(config, loaded)
    loop_state = experiment.start()

    def run(times):
        nonlocal loop_state
        # `fit` calls `stopped` before each epoch and after each chunk: twice between
        # two epochs, so `on_epoch` subtracts one.
        asked = -1
        chunks = times * STEPS // experiment.chunk_lengths()[0]

        def stopped():
            nonlocal asked
            asked += 1
            return asked >= chunks

        def on_epoch(loop_state, row):
            nonlocal asked
            asked -= 1

        loop_state = loop.fit(
            experiment,
            loop_state,
            num_epochs=10**6,
            stopped=stopped,
            on_epoch=on_epoch,
            on_divergence=lambda step: None,
        )
        jax.block_until_ready(loop_state)

    return run, loaded.image_shape[0]


def main() -> None:
    dataset = sys.argv[1] if len(sys.argv) > 1 else "digits"
    run_loop, image_size = whole_loop(dataset)
    stepper = Stepper(
        Workload("custom_cnn", (), 128, "float32"), image_size, "insgd-l2"
    )
    run_step = stepper.run_from(stepper.state)
    rng = np.random.default_rng(0)
    times = timing.interleave(
        {
            "loop": run_loop,
            "step": lambda times: run_step(times * STEPS // stepper.steps_per_call()),
        },
        ROUNDS,
        rng,
    )
    for name, one in times.items():
        print(f"{name}: {1e3 * np.median(one.seconds) / STEPS:.2f} ms a step")
    for kind in ("seconds", "processor_seconds"):
        loop_times, step_times = (getattr(one, kind) for one in times.values())
        ratio = timing.compare(loop_times, step_times, rng)
        low, high = ratio.interval
        print(
            f"loop / step, {kind}: {ratio.of_medians:.3f} "
            f"(95 %: {low:.3f} to {high:.3f})"
        )
    print(jax.devices()[0].device_kind, jax.__version__)


if __name__ == "__main__":
    main()
