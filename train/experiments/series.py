"""Runs many configurations, resuming and reusing existing runs.

A run's folder is named after its options. A table and a sweep with the same run share
it, and a series that was stopped continues where it left off. Runs are locked during
training, so several processes can work on the same series.
"""

import dataclasses
import gc
import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from train import own_code
from train.config import TrainingConfig, option
from train.errors import UserError, print_warning
from train.experiments import workers
from train.run import folder as run_folder
from train.run import metrics
from train.run.checkpoints import latest_rows
from train.run.command import run
from train.run.folder import RunFolder
from train.run.lock import RunInProgress, RunLock
from train.run.metrics import EpochMetrics
from train.run_config import FREE_ON_RESUME, RunConfig
from train.training import optimizers, parallel

_POLL_SECONDS = 2.0
_REMEDY = "Move the folder away to rerun it, or use another --runs-dir."
# Options that do not affect results, except as `affects_results` says.
_FREE = FREE_ON_RESUME | {"processes"}


def digest(value: Any) -> str:
    """Returns a short hash of anything JSON can hold."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_path(config: RunConfig) -> Path:
    """Returns the folder of the run with these options."""
    default = RunConfig().to_json() | {
        # The folder's name contains the optimizer's name already, but not its module.
        "optimizer": own_code.short(config.optimizer),
        "learning_rate": optimizers.default_learning_rate(config.optimizer),
    }
    identity = {
        name: value
        for name, value in config.to_json().items()
        # Defaults are left out, so that adding an option later keeps existing names.
        if value != default[name] and affects_results(name, value)
    }
    end = f"-{config.epochs}epochs-{digest(identity)}"
    runs_dir = config.runs_dir.expanduser().absolute()
    named = runs_dir / f"{config.readable_name}{end}"
    former = runs_dir / f"{config.former_name}{end}"
    # Earlier versions named fewer options.
    return former if former.exists() and not named.exists() else named


def affects_results(name: str, value: Any) -> bool:
    """Returns whether runs that differ in an option are different runs."""
    if name == "parallel":  # It changes dropout masks, or at most the last bits.
        return parallel.folds_in_device(value)
    return name == "epochs" or name not in _FREE


def finished_metrics(config: RunConfig) -> list[EpochMetrics] | None:
    """Returns the metrics of each epoch of a run; None if it is not finished.

    If the run was extended, these are the first `config.epochs` epochs, since schedules
    do not depend on the total.

    Raises:
        UserError: if the run in the folder has other options or an unreadable record.
    """
    folder = _existing(config)
    if folder is None:
        return None
    # A run whose metrics differ from the copy in its checkpoint counts as unfinished:
    # resuming it repairs them.
    copy = latest_rows(folder.checkpoints)
    return metrics.read_whole(folder.metrics, config.epochs, copy)


def _existing(config: RunConfig) -> RunFolder | None:
    """Returns the folder of a run if it has metrics.

    Raises:
        UserError: if its record is missing or is that of another run.
    """
    path = run_path(config)
    # Another process may be creating the run; metrics come after the record.
    if not RunFolder(path, {}).metrics.exists():
        return None
    if not (path / run_folder.RECORD).exists():
        raise UserError(
            f"The run {path} has metrics but no {run_folder.RECORD}, so its options "
            f"are unknown. {_REMEDY}"
        )
    return _load(config, path)


def _load(config: RunConfig, path: Path) -> RunFolder:
    """Opens the folder of a run and compares the options that `--resume` must keep.

    The name alone does not identify them, since defaults may have changed.
    """
    folder = run_folder.load(path, config.own_code())
    recorded, asked = folder.config.to_json(), config.to_json()
    differences = [
        f"{option(name)} was {recorded[name]}, is {value}"
        for name, value in asked.items()
        # `_check_data` compares the contents of the dataset.
        if name not in FREE_ON_RESUME | {"dataset"} and recorded[name] != value
    ]
    used = {folder.config.parallel, *(e.get("parallel") for e in folder.environments)}
    masks = parallel.folds_in_device(config.parallel)
    for name in sorted(each for each in used if each is not None):
        if parallel.folds_in_device(name) != masks:
            differences.append(
                f"--parallel was {name}, is {config.parallel}, which draws other "
                "dropout masks"
            )
    if differences:
        raise UserError(
            f"The run {path} was started with other options: "
            f"{'; '.join(differences)}. {_REMEDY}"
        )
    if changed := folder.changed_code():
        raise UserError(
            f"The run {path} was made with other code; changed since then: "
            f"{' and '.join(changed)}. {_REMEDY}"
        )
    return folder


def title(setting: TrainingConfig, runs: Iterable[RunConfig]) -> str:
    """Network and dataset of runs, at least one of them started, for plot titles."""
    folders = map(_existing, runs)
    folder = next(each for each in folders if each is not None)
    return setting.title(folder.record["dataset"]["name"])


def _check_data(configs: Iterable[RunConfig]) -> None:
    """Raises unless existing runs were trained on the current data."""
    descriptions: dict[Any, dict[str, object]] = {}
    unknown = []
    for config in configs:
        folder = _existing(config)
        if folder is None:
            continue
        data = config.dataset, config.image_size
        if data not in descriptions:
            descriptions[data] = config.load_dataset().describe()
        try:
            folder.check_dataset(descriptions[data])
        except UserError as error:
            raise UserError(f"{error} {_REMEDY}") from error
        if not folder.has_fingerprint:
            unknown.append(folder.path.name)
    if unknown:
        print_warning(
            "these runs were started by an earlier version without a "
            "fingerprint of the data, so replaced images go unnoticed: "
            f"{', '.join(unknown)}."
        )


def by_seed(rows: Iterable[Sequence[RunConfig | None]]) -> list[RunConfig]:
    """Orders runs by seed: a series stopped early has all rows, with fewer seeds.

    Args:
        rows: for each row, its runs ordered by seed; None for a run not known yet.
    """
    seeds = zip(*rows, strict=True)
    return [config for configs in seeds for config in configs if config is not None]


def distinct(configs: Iterable[RunConfig]) -> list[RunConfig]:
    """Returns one configuration per run, in order: a row and a control may share it."""
    return list({run_path(config): config for config in configs}.values())


def complete(configs: Sequence[RunConfig], processes: int = 1) -> int:
    """Runs what is missing, in order.

    Runs held by another process come last: this process waits for them, and takes over
    if the other process stops.

    Args:
        configs: the runs, without `run_dir` and `resume`.
        processes: number of worker processes; 1 trains in this process.

    Returns:
        0, or the exit status of a run that was stopped.

    Raises:
        UserError: if `processes` is out of range, a worker fails, or the folder of a
            run has another run.
    """
    if processes < 1:
        raise UserError(f"--processes must be at least 1, got {processes}")
    configs = distinct(configs)
    _check_data(configs)
    missing = _missing(configs)
    started = sum((run_path(each) / run_folder.RECORD).exists() for each in missing)
    in_part = f"; {started} more {'was' if started == 1 else 'were'} started"
    print(
        f"{len(configs) - len(missing)} of {len(configs)} runs are finished"
        f"{in_part if started else ''}."
    )
    if not missing:
        return 0
    if processes > 1:
        return workers.complete(
            missing,
            min(processes, len(missing)),
            is_finished=lambda config: finished_metrics(config) is not None,
        )
    return _complete_here(missing)


def _complete_here(missing: Sequence[RunConfig]) -> int:
    keep_compiled(missing[0].cache_folder / "compiled")
    waiting = False
    numbers = {run_path(config): n for n, config in enumerate(missing, start=1)}
    started, left = time.monotonic(), missing
    while missing:
        held = []
        for config in missing:
            title = f"Run {numbers[run_path(config)]} of {len(numbers)} to do:"
            # Other processes may finish runs, too.
            left = _missing(left)
            if done := len(numbers) - len(left):
                seconds = (time.monotonic() - started) / done * len(left)
                title += f" about {duration(seconds)} left"
            try:
                status = _finish(config, title)
            except RunInProgress as error:
                held.append((config, error))
                continue
            if status:
                print("Run the same command again to resume.")
                return status
            if finished_metrics(config) is None:
                raise UserError(
                    f"The run {run_path(config)} has finished, but its metrics are "
                    f"incomplete. {_REMEDY}"
                )
            # A run leaves some 5 MB of programs and arrays in cycles, which Python
            # would collect only after many runs.
            gc.collect()
        if len(held) == len(missing):
            if not waiting:
                reasons = "\n".join(f"- {error}" for _, error in held)
                print(f"Waiting for runs held by other processes:\n{reasons}")
            waiting = True
            time.sleep(_POLL_SECONDS)
        missing = _missing(config for config, _ in held)
    return 0


def _missing(configs: Iterable[RunConfig]) -> list[RunConfig]:
    return [config for config in configs if finished_metrics(config) is None]


def _finish(config: RunConfig, title: str) -> int:
    """Trains a run to its last epoch, unless it is finished.

    Raises:
        RunInProgress: if another process has locked the run.
    """
    path = run_path(config)
    run_folder.make(path, exist_ok=True)
    with RunLock() as lock:
        lock.take(path)
        # Another process may have finished it in the meantime.
        if finished_metrics(config) is not None:
            return 0
        print(title)
        # A learning rate at which training diverges is a result, too.
        config = dataclasses.replace(config, on_divergence="continue")
        if (path / run_folder.RECORD).exists():
            _load(config, path)
            return run(dataclasses.replace(config, resume=path), lock)
        return run(dataclasses.replace(config, run_dir=path), lock)


def keep_compiled(folder: Path) -> None:
    """Enables JAX's compilation cache: runs that differ in their seeds share programs.

    So do those that differ in the learning rate.
    """
    # JAX adds its options dynamically.
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(folder))


def duration(seconds: float) -> str:
    """Formats a duration, such as 2 h 5 min."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{round(seconds)} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def report_folder(command: str, config: TrainingConfig) -> Path:
    """Creates the report folder of a command with these options."""
    options = {
        field.name: value
        for field in dataclasses.fields(config)
        if (value := getattr(config, field.name)) != field.default
        and affects_results(field.name, value)
    }
    name = f"{command}-{config.data_name}-{own_code.short(config.model)}"
    name += f"-{config.epochs}epochs-{digest(options)}"
    folder = config.runs_dir.expanduser().absolute() / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
