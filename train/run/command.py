"""`python -m train run`: trains a network and writes the results."""

import contextlib
import dataclasses
import io
import math
import signal
import sys
from pathlib import Path

import jax

from train import progress as progress_bars
from train.errors import UserError, print_warning
from train.interrupt import StopRequest
from train.markdown import counted
from train.run import folder as run_folder
from train.run import loop, metrics, plots, warn
from train.run.checkpoints import (
    Checkpoints,
    DamagedCheckpoint,
    Restored,
    latest_rows,
)
from train.run.experiment import Experiment
from train.run.folder import RunFolder
from train.run.lock import RunLock
from train.run.metrics import EpochMetrics, MetricsWriter
from train.run_config import RunConfig
from train.training import distributed
from train.training.state import LoopState

# Exit status of a run that stopped because it diverged.
DIVERGED = 3


class _Diverged(Exception):
    """The loss or a parameter is not finite; the message has remedies."""


def run(config: RunConfig, lock: RunLock | None = None) -> int:
    """Starts a run, or resumes `config.resume`.

    Args:
        config: the options; with `resume`, those of the resumed run.
        lock: a lock on the run folder that the caller holds. Default: taken here.

    Returns:
        The exit status: 0, `DIVERGED`, or 128 plus the number of the signal that
        requested a stop, even if the run had already finished.

    Raises:
        RunInProgress: if another process has locked the run.
    """
    distributed.start(config.launch)
    with contextlib.ExitStack() as stack:
        stack.enter_context(distributed.peers_watched())
        if not distributed.is_first():
            # All processes compute and save; only process 0 prints and writes other
            # files.
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        return _run(config, lock or stack.enter_context(RunLock()), stack)


def _run(config: RunConfig, lock: RunLock, stack: contextlib.ExitStack) -> int:
    is_first, in_several = distributed.is_first(), jax.process_count() > 1
    if config.resume is not None:
        folder = run_folder.load(config.resume, config.own_code())
        # Take the lock before device memory, which its current holder may need.
        distributed.from_first(lambda: str(lock.take(folder.path)))
        if not in_several and (rows := _finished_rows(config, folder)):
            resume = f"--resume {_short(folder.path)}{config.own_code_options()}"
            print(
                "Nothing is left to do: the run has trained for "
                f"{counted(config.epochs, 'epoch')}. To train longer: python -m train "
                f"{resume} --epochs N, where N is above {config.epochs}."
            )
            print(_closing_line(rows, folder))
            return 0
    # The next steps take a while, mostly to compile.
    print(
        f"Loading {config.data_name}, compiling {config.model} for {config.optimizer}."
    )
    dataset = config.load_dataset()
    distributed.check_equal(
        config.shared_options()
        | {f"data {k}": v for k, v in dataset.describe().items()}
        | {f"the code of {k}": v for k, v in config.own_code().items()}
    )
    experiment = Experiment(config, dataset)
    experiment.check_devices()
    loop_state = experiment.start()
    environment = experiment.describe_environment()
    if config.resume is None:

        def create() -> str:
            created = run_folder.create(
                config,
                dataset.describe(),
                environment,
                dataset.describe_preprocessing(),
            )
            return str(lock.take(created.path))

        path = Path(distributed.from_first(create))
        folder = run_folder.load(path, config.own_code())
    else:
        folder.check_dataset(dataset.describe())
        if is_first:
            folder.warn_without_fingerprint()
    distributed.advise(
        "Start all processes again with --resume instead of --run-dir: "
        f"python -m train --resume {_short(folder.path)}{config.own_code_options()}"
    )
    checkpoints = Checkpoints(folder.checkpoints, LoopState.step_of_checkpoint)
    stack.callback(checkpoints.close)
    restored = checkpoints.restore_latest(like=loop_state.to_checkpoint())
    if restored is not None:
        loop_state = LoopState.from_checkpoint(restored.tree)
        _set_damaged_aside(checkpoints, restored)
    first_step = int(loop_state.state.step)
    _check_epochs(config, folder, first_step, experiment.steps_per_epoch)
    if config.resume is not None and is_first:
        folder.record_options(config)
        folder.record_preprocessing(dataset)
        folder.record_environment(environment)
    print(
        f"{config.model} on {dataset.name} ({_numbers(experiment)}) with "
        f"{config.optimizer}, learning "
        f"rate {config.initial_learning_rate:g}. Run folder: {_short(folder.path)}"
    )
    warning = warn.of_schedule(config)
    if warning is not None and is_first:
        print_warning(warning)
    if first_step:
        print(f"Resuming from step {first_step}.")

    rows, warnings = metrics.recover(
        folder.metrics, first_step, [] if restored is None else restored.rows
    )
    if is_first:
        for warning in warnings:
            print_warning(warning)
    tensorboard = folder.path / "tensorboard" if config.tensorboard else None
    writer = MetricsWriter(folder.metrics, rows, tensorboard) if is_first else None
    if writer is not None:
        stack.callback(writer.close)
    stop_in_any = warned_at_floor = False

    def on_epoch(loop_state: LoopState, row: EpochMetrics) -> None:
        nonlocal stop_in_any, warned_at_floor
        rows.append(row)
        if writer is not None:
            lock.check()
            writer.write(row)
        checkpoints.save(
            row["step"],
            loop_state.to_checkpoint(),
            metrics.score(row),
            metrics.to_json(rows),
        )
        # Processes must agree to stop at the same step.
        stop_in_any = distributed.any_process(bool(stop))
        if not is_first:
            return
        progress_bars.write(_epoch_line(row, config.epochs))
        if row.get("at_floor") and not warned_at_floor:
            warned_at_floor = True
            progress_bars.write(f"Warning: {warn.of_floor(row)}", file=sys.stderr)

    def on_divergence(step: int) -> None:
        said = warn.of_divergence(config, step, experiment.steps_per_epoch)
        if config.on_divergence == "stop":
            raise _Diverged(said)
        if is_first:
            progress_bars.write(f"Warning: {said}", file=sys.stderr)

    diverged = None
    when = "at the end of this epoch" if in_several else "after the current chunk"
    message = (
        f"Stopping {when} to save a checkpoint. Press Ctrl-C again to stop immediately "
        "without saving."
    )
    with StopRequest(message) as stop:
        try:
            loop_state = loop.fit(
                experiment,
                loop_state,
                config.epochs,
                stopped=lambda: stop_in_any if in_several else bool(stop),
                on_epoch=on_epoch,
                on_divergence=on_divergence,
            )
        except _Diverged as error:
            diverged = error
        else:
            step = int(loop_state.state.step)
            lock.check()
            checkpoints.save(
                step, loop_state.to_checkpoint(), None, metrics.to_json(rows)
            )
        last_good = checkpoints.latest_step
        if is_first:
            title = f"{config.title(dataset.name)}, seed {config.seed}"
            plots.plot_test_error(
                {config.optimizer: [rows]},
                folder.plot,
                title=f"{title}{_best_epoch(rows)}",
            )
            if rows and "multipliers" in rows[-1]:
                title = f"{config.optimizer}, {title}"
                plots.plot_multipliers(rows, folder.multipliers_plot, title)
    if diverged is not None:
        kept = "It has no checkpoint yet."
        if last_good is not None:
            kept = f"Its latest checkpoint is that of step {last_good}."
        print(
            f"Error: {diverged} The run was stopped. {kept} "
            "To train to the last epoch anyway, pass --on-divergence continue.",
            file=sys.stderr,
        )
        return DIVERGED
    if step < config.epochs * experiment.steps_per_epoch:
        # The signal is not known if only another process received it.
        stopped_by = stop.signal or signal.SIGTERM
        print(
            f"Stopped by {stopped_by.name} and saved at step {step}. Resume with: "
            f"python -m train --resume {_short(folder.path)}{config.own_code_options()}"
        )
        return 128 + stopped_by
    print(_closing_line(rows, folder))
    # After a signal, callers must not start another run, although this one finished.
    return 0 if stop.signal is None else 128 + stop.signal


def _finished_rows(config: RunConfig, folder: RunFolder) -> list[EpochMetrics] | None:
    """Returns the metrics of a run whose folder is complete and intact, or None."""
    copy = latest_rows(folder.checkpoints)
    rows = copy and metrics.read_whole(folder.metrics, config.epochs, copy)
    if not rows:
        return None
    made = [folder.plot, folder.path / run_folder.CONFIG]
    made += [folder.multipliers_plot] * ("multipliers" in rows[-1])
    # An earlier version may have left parts out.
    if "preprocessing" not in folder.record or not all(map(Path.exists, made)):
        return None
    experiment = Experiment(
        dataclasses.replace(config, parallel="jit"), folder.recorded_dataset()
    )
    start = experiment.abstract_start().to_checkpoint()
    checkpoints = Checkpoints(folder.checkpoints, LoopState.step_of_checkpoint)
    with contextlib.closing(checkpoints), contextlib.suppress(DamagedCheckpoint):
        restored = checkpoints.restore_latest(like=start)
        last_step = config.epochs * experiment.steps_per_epoch
        if restored and restored.step == last_step and not restored.damaged:
            return rows
    return None


def _numbers(experiment: Experiment) -> str:
    """Formats the number of images of each split."""
    *others, (last, number) = experiment.num_images.items()
    numbers = [f"{number} {name}" for name, number in others]
    return ", ".join([*numbers, counted(number, f"{last} image")])


def _best_epoch(rows: list[EpochMetrics]) -> str:
    """Returns the second line of the plot's title, which states the best epoch."""
    if not rows:
        return ""
    best = metrics.best(rows)
    images = metrics.selected_on(best)
    return f"\nBest epoch {best['epoch']}, selected on the {images} images"


def _set_damaged_aside(checkpoints: Checkpoints, restored: Restored) -> None:
    """Moves damaged later checkpoints away; warns of them and of a missing checksum."""
    moved = checkpoints.set_aside(restored.damaged)
    if not distributed.is_first():
        return
    for message, target in zip(restored.damaged.values(), moved, strict=True):
        print_warning(
            f"{message} It was moved to {_short(target)}, and the run resumes "
            f"from step {restored.step}."
        )
    if restored.warning is not None:
        print_warning(restored.warning)


def _check_epochs(
    config: RunConfig, folder: RunFolder, first_step: int, steps_per_epoch: int
) -> None:
    """Raises if a run has already passed its last epoch."""
    if first_step > config.epochs * steps_per_epoch:
        done = first_step / steps_per_epoch
        raise UserError(
            f"The run {folder.path} has already trained for {done:g} "
            f"epoch{'s' * (done != 1)}, more than --epochs {config.epochs}. Pass "
            f"--epochs {math.ceil(done)} or more, or start a new run."
        )


def _epoch_line(row: EpochMetrics, num_epochs: int) -> str:
    parts = [
        f"epoch {row['epoch']}/{num_epochs}",
        f"train loss {row['train_loss']:.4f}",
        f"test loss {row['test_loss']:.4f}",
        f"test top-1 {100 * row['test_top1']:.2f} %",
    ]
    if "val_top1" in row:
        parts.insert(-2, f"validation top-1 {100 * row['val_top1']:.2f} %")
    if "raw_test_top1" in row:
        parts.append(f"not averaged {100 * row['raw_test_top1']:.2f} %")
    if row.get("weights_at_floor"):
        parts.append(
            f"weights at the floor {row['weights_at_floor']}/{len(row['multipliers'])}"
        )
    if "train_polyak_scale" in row:
        parts.append(f"learning rate capped at {row['train_polyak_scale']:.2g}x")
    return "  ".join(parts)


def _closing_line(rows: list[EpochMetrics], folder: RunFolder) -> str:
    made = [folder.metrics, folder.plot, folder.multipliers_plot]
    names = ", ".join(path.name for path in made if path.exists())
    files = (
        f"In {_short(folder.path)}: {names}, {folder.checkpoints.name}/, "
        f"{run_folder.RECORD}, {run_folder.CONFIG}"
    )
    if not rows:
        return f"{folder.metrics.name} was lost; run eval to evaluate again. {files}"
    last = rows[-1]
    best = metrics.best(rows)
    averaged = " of the averaged weights" if "raw_test_top1" in last else ""
    images = metrics.selected_on(best)
    return (
        f"Test accuracy{averaged} {100 * last['test_top1']:.2f} % after epoch "
        f"{last['epoch']} (best: {100 * best['test_top1']:.2f} % after epoch "
        f"{best['epoch']}, selected on the {images} images). {files}"
    )


def _short(path: Path) -> str:
    """Returns the path relative to the current folder, if it is inside."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
