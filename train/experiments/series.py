"""Many runs: those that are missing are run, those half done finished, none repeated.

A run's folder is named after its options, so whoever asks for the same run finds it:
a table and a sweep share it, and a series that is stopped goes on where it was. Each
run is locked while it is trained, so processes with the same series share its runs.
"""

import dataclasses
import functools
import hashlib
import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from train.config import FREE_ON_RESUME, RunConfig, TrainingConfig, option
from train.data import registry
from train.errors import UserError
from train.experiments import workers
from train.run import folder as run_folder
from train.run import metrics
from train.run.checkpoints import latest_rows
from train.run.command import run
from train.run.folder import RunFolder
from train.run.lock import RunInProgress, RunLock
from train.run.metrics import EpochMetrics
from train.training import parallel

_POLL_SECONDS = 2.0
_REMEDY = "Move that folder away to run it anew, or give another --runs-dir."
# Options that do not affect results.
_FREE = FREE_ON_RESUME | {"processes"}


def digest(value: Any) -> str:
    """A short name for anything JSON can hold."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_path(config: RunConfig) -> Path:
    """The folder of the one run with these options."""
    default = RunConfig(optimizer=config.optimizer).to_json()
    options = config.to_json()
    kind, colon, path = config.dataset.partition(":")
    if colon:
        # Seen from elsewhere, a relative path names other images.
        options["dataset"] = f"{kind}:{Path(path).expanduser().absolute()}"
    identity = {
        name: value
        for name, value in options.items()
        # A longer run has other milestones: it is another run here. An option that
        # comes into being later does not make runs without it others.
        if value != default[name] and _affects_results(name, value)
    }
    name = f"{config.readable_name}-{config.epochs}epochs-{digest(identity)}"
    return config.runs_dir.expanduser().absolute() / name


def _affects_results(name: str, value: Any) -> bool:
    """Whether runs that differ in an option are different runs."""
    if name == "parallel":  # It changes dropout masks, or at most the last bits.
        return parallel.folds_in_device(value)
    return name == "epochs" or name not in _FREE


def finished_metrics(config: RunConfig) -> list[EpochMetrics] | None:
    """The metrics of each epoch of a run; None if it is not finished.

    Of a run that was made longer since, those of the first `config.epochs` epochs: no
    schedule depends on how many follow.

    Raises:
        UserError: if the run in its folder was started with other options, or there is
            no telling.
    """
    folder = _existing(config)
    if folder is None:
        return None
    # Metrics that were lost or changed would give other means and another best epoch.
    # What is damaged is repaired when the run goes on.
    copy = latest_rows(folder.checkpoints)
    if not metrics.is_whole(folder.metrics, config.epochs, copy):
        return None
    return metrics.read(folder.metrics)[: config.epochs]


def _existing(config: RunConfig) -> RunFolder | None:
    """The folder of a run that has metrics; None if there is none.

    Raises:
        UserError: if its record is missing, or is not of this run.
    """
    path = run_path(config)
    # Metrics come after the record, which another process may be writing just now.
    if not RunFolder(path, {}).metrics.exists():
        return None
    if not (path / run_folder.RECORD).exists():
        raise UserError(
            f"The run {path} has metrics but no {run_folder.RECORD}, which would tell "
            f"what they are of. {_REMEDY}"
        )
    return _load(config, path)


def _load(config: RunConfig, path: Path) -> RunFolder:
    """Opens the folder of a run, and compares all its options.

    Its name does not tell them: those equal to their defaults are not in it.
    """
    folder = run_folder.load(path)
    recorded, asked = folder.config.to_json(), config.to_json()
    differences = [
        f"{option(name)} was {recorded[name]}, is {value}"
        for name, value in asked.items()
        # The data are compared by what they are, see `_check_data`.
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
    return folder


def _check_data(configs: Iterable[RunConfig]) -> None:
    """Raises unless runs that were started had the data as they are now."""
    describe = functools.cache(
        lambda name, options: registry.load(name, options).describe()
    )
    unknown = []
    for config in configs:
        folder = _existing(config)
        if folder is None:
            continue
        description = describe(config.dataset, config.load_options)
        try:
            folder.check_dataset(description)
        except UserError as error:
            raise UserError(f"{error} {_REMEDY}") from error
        if not folder.has_fingerprint:
            unknown.append(folder.path.name)
    if unknown:
        print(
            "Warning: these runs are of an earlier version, without a fingerprint of "
            "the data: images that were replaced since they were started are not "
            f"noticed: {', '.join(unknown)}.",
            file=sys.stderr,
        )


def by_seed(rows: Iterable[Sequence[RunConfig | None]]) -> list[RunConfig]:
    """All runs, so that a series stopped early has every row with fewer seeds.

    Args:
        rows: runs that differ by their seed, in each row as many; None for one that is
            not known yet.
    """
    seeds = zip(*rows, strict=True)
    return [config for configs in seeds for config in configs if config is not None]


def complete(configs: Sequence[RunConfig], processes: int = 1) -> int:
    """Runs what is missing, in order; those that another process runs come last.

    For these it waits, and takes over what the other leaves unfinished.

    Args:
        configs: the runs; `run_dir` and `resume` unset.
        processes: with more than one, this process starts so many that do the work.

    Returns:
        0, or the exit status of the run that was stopped; called again, it goes on.

    Raises:
        UserError: if `processes` is no number of processes, one of them fails, or what
            is in a run's folder is not that run.
    """
    if processes < 1:
        raise UserError(f"--processes must be at least 1, got {processes}")
    _check_data(configs)
    missing = [config for config in configs if finished_metrics(config) is None]
    print(f"{len(configs) - len(missing)} of {len(configs)} runs are finished.")
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
    _keep_compiled(missing[0].load_options.cache_dir / "compiled")
    waiting = False
    numbers = {run_path(config): n for n, config in enumerate(missing, start=1)}
    while missing:
        held = []
        for config in missing:
            title = f"Run {numbers[run_path(config)]} of {len(numbers)} to do:"
            try:
                status = _finish(config, title)
            except RunInProgress as error:
                held.append((config, error))
                continue
            if status:
                print("The same command again goes on from here.")
                return status
            if finished_metrics(config) is None:
                raise UserError(
                    f"The run {run_path(config)} is at its end, but its metrics are not "
                    f"whole. {_REMEDY}"
                )
        if len(held) == len(missing):
            if not waiting:
                reasons = "\n".join(f"- {error}" for _, error in held)
                print(f"Waiting for what other processes run:\n{reasons}")
            waiting = True
            time.sleep(_POLL_SECONDS)
        missing = [config for config, _ in held if finished_metrics(config) is None]
    return 0


def _finish(config: RunConfig, title: str) -> int:
    """Trains a run to its end, unless it is there.

    Raises:
        RunInProgress: if another process has the run.
    """
    path = run_path(config)
    run_folder.make(path, exist_ok=True)
    with RunLock() as lock:
        lock.take(path)
        # Another process may have run it since it was found missing.
        if finished_metrics(config) is not None:
            return 0
        print(title)
        # A rate at which a run diverges is a result, too.
        config = dataclasses.replace(config, on_divergence="continue")
        if (path / run_folder.RECORD).exists():
            _load(config, path)
            return run(dataclasses.replace(config, resume=path), lock)
        return run(dataclasses.replace(config, run_dir=path), lock)


def _keep_compiled(folder: Path) -> None:
    """Lets runs that differ by their seed alone, and later ones, share programs."""
    # JAX adds its options to this object where no type checker sees it.
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(folder))


def report_folder(command: str, config: TrainingConfig) -> Path:
    """Makes the folder for what a command with these options makes of its runs."""
    options = {
        field.name: value
        for field in dataclasses.fields(config)
        if (value := getattr(config, field.name)) != field.default
        and _affects_results(field.name, value)
    }
    data = Path(config.dataset.partition(":")[2]).name or config.dataset
    name = f"{command}-{data}-{config.model}-{config.epochs}epochs-{digest(options)}"
    folder = config.runs_dir.expanduser().absolute() / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
