"""The training loop over chunks of steps and epochs."""

import contextlib
import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import jax

from train import progress as progress_bars
from train.run.experiment import Experiment
from train.run.metrics import EpochMetrics
from train.training import distributed
from train.training.state import AveragedTrainState, LoopState, without_average
from train.training.step import FINITE_STEPS


def fit(
    experiment: Experiment,
    loop_state: LoopState,
    num_epochs: int,
    *,
    stopped: Callable[[], bool],
    on_epoch: Callable[[LoopState, EpochMetrics], None],
    on_divergence: Callable[[int], None],
) -> LoopState:
    """Trains from the step of `loop_state` to the last epoch.

    The host waits for the device only for the metrics of the previous chunk and at the
    end of an epoch.

    Args:
        experiment: the programs of the run; closed at the end.
        loop_state: the current state, which is donated.
        num_epochs: number of epochs of the whole run.
        stopped: called before each epoch and after each chunk; True stops the training.
        on_epoch: called after each epoch with the state and the metrics of the epoch.
        on_divergence: called once, with the first step after which the loss or a
            parameter was not finite. May raise to stop the training.

    Returns:
        The final state.
    """
    steps_per_epoch = experiment.steps_per_epoch
    step = int(loop_state.state.step)
    loop_state = experiment.count_finite(loop_state)
    diverged = False

    def check_finite(metric_sums: dict[str, jax.Array], done: int) -> None:
        """Checks the sums over the first `done` steps of the epoch of `step`."""
        nonlocal diverged
        finite = int(metric_sums[FINITE_STEPS])
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
            resumed_within = step % steps_per_epoch != 0
            for length in _remaining(
                experiment.chunk_lengths(step - step % steps_per_epoch),
                step % steps_per_epoch,
            ):
                previous, done = loop_state.metric_sums, step % steps_per_epoch
                loop_state = experiment.train_chunk(loop_state, step, length)
                step += length
                if done:
                    check_finite(previous, done)
                    loss = float(previous["loss"]) / done
                    bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                bar.update(length)
                if stopped():
                    break
            check_finite(loop_state.metric_sums, (step - 1) % steps_per_epoch + 1)
            if step % steps_per_epoch == 0:
                row = _row(experiment, loop_state, step)
                # Unknown for an epoch whose first steps another session trained.
                row["seconds"] = (
                    math.nan if resumed_within else time.perf_counter() - started
                )
                on_epoch(_without_count(loop_state), row)
    return _without_count(loop_state)


def _without_count(loop_state: LoopState) -> LoopState:
    """Returns the state that a checkpoint stores."""
    metric_sums = {
        n: total for n, total in loop_state.metric_sums.items() if n != FINITE_STEPS
    }
    return loop_state._replace(metric_sums=metric_sums)


def _remaining(lengths: list[int], done: int) -> list[int]:
    """Returns the lengths of an epoch's chunks after its first `done` steps.

    The first one is cut if a run is resumed within a chunk, which happens when chunks
    had another length before.
    """
    ends = itertools.accumulate(lengths)
    return [
        min(length, end - done)
        for length, end in zip(lengths, ends, strict=True)
        if end > done
    ]


def _row(experiment: Experiment, loop_state: LoopState, step: int) -> EpochMetrics:
    """Collects the metrics of an epoch as Python numbers by name."""
    state, metric_sums = _without_count(loop_state)
    steps_per_epoch = experiment.steps_per_epoch
    scores = {"test": experiment.evaluate(state), "val": experiment.validate(state)}
    if isinstance(state, AveragedTrainState):
        scores["raw_test"] = experiment.evaluate(without_average(state))
    metric_sums, scores = jax.device_get((metric_sums, scores))
    row: dict[str, Any] = {
        "epoch": step // steps_per_epoch,
        "step": step,
        "learning_rate": float(experiment.schedule(step - 1)),
    }
    row |= {
        f"train_{name}": float(total) / steps_per_epoch
        for name, total in metric_sums.items()
    }
    row |= {
        f"{split}_{name}": float(value)
        for split, of_split in scores.items()
        for name, value in of_split.items()
    }
    return row | experiment.diagnostics(state)
