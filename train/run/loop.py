"""The training loop: chunks, and what is done at the end of an epoch."""

import contextlib
import itertools
import time
from collections.abc import Callable
from typing import Any

import jax

from train import progress as progress_bars
from train.run.experiment import Experiment
from train.run.metrics import Row
from train.training import distributed
from train.training.programs import FINITE_STEPS
from train.training.state import Progress


def fit(
    experiment: Experiment,
    progress: Progress,
    num_epochs: int,
    *,
    stopped: Callable[[], bool],
    on_epoch: Callable[[Progress, Row], None],
    on_divergence: Callable[[int], None],
) -> Progress:
    """Trains until an epoch is reached, from wherever `progress` stands.

    Nothing waits for the device but the totals of the chunk before the one under way,
    and the end of an epoch.

    Args:
        experiment: the run's programs; closed at the end.
        progress: where it stands; used up.
        num_epochs: epochs of the whole run.
        stopped: asked after every chunk; True ends the training there.
        on_epoch: called after each epoch with where the run stands and the epoch's
            metrics.
        on_divergence: called once, with the first step after which the loss or a
            weight was not finite. What it raises ends the training.

    Returns:
        Where the run stands at the end.
    """
    steps_per_epoch = experiment.steps_per_epoch
    step = int(progress.state.step)
    progress = experiment.count_finite(progress)
    diverged = False

    def check_finite(totals: dict[str, jax.Array], done: int) -> None:
        """Looks at the totals after `done` steps of the epoch of `step`."""
        nonlocal diverged
        finite = int(totals[FINITE_STEPS])
        if finite < done and not diverged:
            diverged = True
            epoch_start = (step - 1) // steps_per_epoch * steps_per_epoch
            on_divergence(epoch_start + finite + 1)

    with (
        contextlib.closing(experiment),
        progress_bars.bar(
            total=num_epochs * steps_per_epoch,
            initial=step,
            unit="step",
            mininterval=0.5,
            disable=not distributed.is_first(),
        ) as bar,
    ):
        while step < num_epochs * steps_per_epoch and not stopped():
            started = time.perf_counter()
            for length in _remaining(
                experiment.chunk_lengths(), step % steps_per_epoch
            ):
                previous, done = progress.totals, step % steps_per_epoch
                progress = experiment.train_chunk(progress, step, length)
                step += length
                if done:
                    check_finite(previous, done)
                    loss = float(previous["loss"]) / done
                    bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                bar.update(length)
                if stopped():
                    break
            check_finite(progress.totals, (step - 1) % steps_per_epoch + 1)
            if step % steps_per_epoch == 0:
                row = _row(experiment, progress, step)
                row["seconds"] = time.perf_counter() - started
                on_epoch(_without_count(progress), row)
    return _without_count(progress)


def _without_count(progress: Progress) -> Progress:
    """A state as checkpoints hold it."""
    totals = {n: total for n, total in progress.totals.items() if n != FINITE_STEPS}
    return progress._replace(totals=totals)


def _remaining(lengths: list[int], done: int) -> list[int]:
    """The chunks of an epoch after its first `done` steps.

    A run may stop inside what is a chunk now: on other hardware, or with another
    --chunk-steps, chunks had another length. The first chunk is then cut.
    """
    ends = itertools.accumulate(lengths)
    return [
        min(length, end - done)
        for length, end in zip(lengths, ends, strict=True)
        if end > done
    ]


def _row(experiment: Experiment, progress: Progress, step: int) -> Row:
    """An epoch's metrics, by plain names and as plain numbers."""
    state, totals = _without_count(progress)
    steps_per_epoch = experiment.steps_per_epoch
    totals, test = jax.device_get((totals, experiment.evaluate(state)))
    row: dict[str, Any] = {
        "epoch": step // steps_per_epoch,
        "step": step,
        "learning_rate": float(experiment.schedule(step - 1)),
    }
    row |= {
        f"train_{name}": float(total) / steps_per_epoch
        for name, total in totals.items()
    }
    row |= {f"test_{name}": float(value) for name, value in test.items()}
    multipliers = experiment.multipliers(state)
    if multipliers is not None:
        row |= {
            "weights_at_floor": len(multipliers.at_floor),
            "at_floor": list(multipliers.at_floor),
            "mean_multiplier": multipliers.mean,
            "multipliers": multipliers.by_weight,
            "powers": experiment.powers(state),
        }
    row |= experiment.diagnostics(state)
    return row
