"""`python -m train eval`: a finished run's network, evaluated again."""

import dataclasses
import sys
from pathlib import Path

import jax
import tyro

from train.data import registry
from train.inference.load import Checkpoint, restore
from train.run import folder as run_folder
from train.run.experiment import create_evaluator
from train.training import parallel


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluate a checkpoint of a run on the test images."""

    run_dir: tyro.conf.Positional[Path]
    """Run folder."""
    checkpoint: Checkpoint = "latest"
    """Checkpoint; the best is selected by accuracy on the validation images if the run
    has any, or else on the same test images."""


def evaluate(config: EvalConfig) -> int:
    """Prints a checkpoint's test loss and accuracies."""
    folder = run_folder.load(config.run_dir)
    run_config = folder.config
    dataset = registry.load(run_config.dataset, run_config.load_options)
    folder.check_dataset(dataset.describe())
    folder.warn_without_fingerprint()
    run = restore(folder, config.checkpoint)
    for message in run.warnings:
        print(f"Warning: {message}", file=sys.stderr)
    devices = parallel.create(run_config.parallel)
    evaluator = create_evaluator(run_config, dataset, devices)
    scores = jax.device_get(evaluator.evaluate(devices.replicate(run.state)))
    averaged = "" if run_config.ema_decay is None else ", averaged weights"
    print(
        f"{config.checkpoint} checkpoint, step {run.step}{averaged}, on "
        f"{dataset.num_test} test images: loss {scores['loss']:.4f}, "
        f"top-1 {100 * scores['top1']:.2f} %, top-5 {100 * scores['top5']:.2f} %"
    )
    return 0
