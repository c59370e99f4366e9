"""Many runs: those that are missing are run, those half done finished, none repeated.

A run's folder is named after its options, so whoever asks for the same run finds it:
a table and a sweep share it, and a series that is stopped goes on where it was.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from train import metrics, run_folder
from train.commands.run import run
from train.config import FREE_ON_RESUME, RunConfig, Setting
from train.metrics import Row


def digest(value: Any) -> str:
    """A short name for anything JSON can hold."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def place(config: RunConfig) -> Path:
    """The folder of the one run with these options."""
    default = RunConfig(optimizer=config.optimizer).to_json()
    identity = {
        name: value
        for name, value in config.to_json().items()
        # A longer run has other milestones: it is another run here. An option that
        # comes into being later does not make runs without it others.
        if value != default[name] and (name not in FREE_ON_RESUME or name == "epochs")
    }
    name = f"{config.readable_name}-{config.epochs}epochs-{digest(identity)}"
    return config.runs_dir.expanduser().absolute() / name


def finished(config: RunConfig) -> list[Row] | None:
    """The metrics of each epoch of a run; None if it is not finished."""
    rows = metrics.read(run_folder.RunFolder(place(config), {}).metrics)
    return rows if rows and rows[-1]["epoch"] >= config.epochs else None


def complete(configs: Sequence[RunConfig]) -> int:
    """Runs what is missing, in order.

    Args:
        configs: the runs; `run_dir` and `resume` unset.

    Returns:
        0, or the exit status of the run that was stopped; called again, it goes on.
    """
    missing = [config for config in configs if finished(config) is None]
    if missing:
        _keep_compiled(missing[0].load_options.cache_dir / "compiled")
    print(f"{len(configs) - len(missing)} of {len(configs)} runs are finished.")
    for number, config in enumerate(missing, start=1):
        path = place(config)
        print(f"Run {number} of {len(missing)} to do:")
        where = "resume" if (path / run_folder.RECORD).exists() else "run_dir"
        status = run(dataclasses.replace(config, **{where: path}))
        if status:
            print("The same command again goes on from here.")
            return status
    return 0


def _keep_compiled(folder: Path) -> None:
    """Lets runs that differ by their seed alone, and later ones, share programs."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(folder))


def report_folder(command: str, config: Setting) -> Path:
    """Makes the folder for what a command with these options makes of its runs."""
    options = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in FREE_ON_RESUME or field.name == "epochs"
    }
    data = Path(config.dataset.partition(":")[2]).name or config.dataset
    name = f"{command}-{data}-{config.model}-{config.epochs}epochs-{digest(options)}"
    folder = config.runs_dir.expanduser().absolute() / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
