"""`python -m train eval`: a finished run's network, evaluated again."""

import dataclasses
import sys
from pathlib import Path
from typing import Literal

import jax
import tyro

from train.data import registry
from train.errors import UserError
from train.run import folder as run_folder
from train.run.checkpoints import Checkpoints
from train.run.experiment import Experiment
from train.training.state import LoopState


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluate a checkpoint of a run on the test images."""

    run_dir: tyro.conf.Positional[Path]
    """Run folder."""
    checkpoint: Literal["latest", "best"] = "latest"
    """Checkpoint; the best is selected by accuracy on the same test images."""


def evaluate(config: EvalConfig) -> int:
    """Prints a checkpoint's test loss and accuracies."""
    folder = run_folder.load(config.run_dir)
    run_config = folder.config
    dataset = registry.load(run_config.dataset, run_config.load_options)
    folder.check_dataset(dataset.describe())
    folder.warn_without_fingerprint()
    experiment = Experiment(run_config, dataset)
    checkpoints = Checkpoints(folder.checkpoints)
    start = experiment.start().to_checkpoint()
    restored = (
        checkpoints.restore_best(like=start)
        if config.checkpoint == "best"
        else checkpoints.restore_latest(like=start)
    )
    if restored is None:
        raise UserError(
            f"{folder.checkpoints} holds no checkpoint yet. Go on with the run: "
            f"python -m train --resume {config.run_dir}"
        )
    checkpoints.close()
    for message in restored.damaged.values():
        print(
            f"Warning: {message} Evaluating step {restored.step} instead.",
            file=sys.stderr,
        )
    if restored.warning is not None:
        print(f"Warning: {restored.warning}", file=sys.stderr)
    state = LoopState.from_checkpoint(restored.tree).state
    scores = jax.device_get(experiment.evaluate(state))
    print(
        f"{config.checkpoint} checkpoint, step {restored.step}, on "
        f"{dataset.num_test} test images: loss {scores['loss']:.4f}, "
        f"top-1 {100 * scores['top1']:.2f} %, top-5 {100 * scores['top5']:.2f} %"
    )
    return 0
