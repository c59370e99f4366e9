"""Trains with each optimizer as `python -m train compare` does, without checkpoints.

On an accelerator, saving the state after each epoch takes a large part of the time of a
small network's run. The metrics of all runs are written to a JSON file after each run;
runs that are already in the file are not repeated.

python -m benchmarks.pages.training_runs --out FILE --optimizers NAME@RATE ... \
    [--seeds N] [OPTIONS OF COMPARE, EXCEPT --controls AND --processes]

There are no run folders, so --runs-dir and --tensorboard have no effect.
"""

import dataclasses
import json
import shlex
import sys
from pathlib import Path

from train import files, provenance
from train.command_line import parser
from train.errors import UserError, report_errors
from train.experiments import series
from train.experiments.variants import SeriesConfig
from train.run import loop
from train.run.experiment import Experiment

PROGRAM = "python -m benchmarks.pages.training_runs"
NOT_SHARED = {"out", "optimizers", "seeds"}
METRICS = ("test_top1", "train_loss", "test_loss", "seconds")


@dataclasses.dataclass(frozen=True)
class RunsConfig(SeriesConfig):
    """Train with several optimizers and seeds, and write their metrics."""

    out: Path = Path("training_runs.json")
    """JSON file to write; runs that are already in it are not repeated."""

    def __post_init__(self):
        super().__post_init__()
        if self.processes != 1:
            raise ValueError(
                "--processes is not supported here: start several commands, each with "
                "its own --out"
            )

    def settings(self):
        """The options that all runs of the file share."""
        shared = {
            name: value
            for name, value in self.to_json().items()
            if name not in NOT_SHARED and series.affects_results(name, value)
        }
        return json.loads(json.dumps(shared))


def train(config, dataset):
    """Trains one run; returns the metrics of its epochs."""
    rows = []

    def on_epoch(loop_state, row):
        rows.append(row)
        print(
            f"{config.optimizer}, seed {config.seed}, epoch {len(rows)}: "
            f"{row['test_top1']:.2%}, loss {row['train_loss']:.4f}, "
            f"{row['seconds']:.2f} s",
            flush=True,
        )

    experiment = Experiment(config, dataset)
    loop.fit(
        experiment,
        experiment.start(),
        config.epochs,
        stopped=lambda: False,
        on_epoch=on_epoch,
        on_divergence=lambda step: print(f"{config.optimizer} diverged in step {step}"),
    )
    return rows


def run_all(config: RunsConfig) -> int:
    """Trains what is missing, seed by seed."""
    found: dict[str, dict] = {name: {} for name in ("seeds", *METRICS)}
    settings = config.settings()
    if config.out.exists():
        before = json.loads(files.read(config.out))
        if before["settings"] != settings:
            raise UserError(
                f"{config.out} has runs with other options. Use another --out."
            )
        found = {name: before[name] for name in found}
    dataset = config.load_dataset()
    named = {text: config.runs(text) for text in config.optimizers}
    for seed in range(config.seeds):
        for text, runs in named.items():
            seeds = found["seeds"].setdefault(text, [])
            if seed in seeds:
                continue
            rows = train(runs[seed], dataset)
            seeds.append(seed)
            for name in METRICS:
                factor, digits = (100, 2) if name == "test_top1" else (1, 4)
                values = [round(factor * row[name], digits) for row in rows]
                found[name].setdefault(text, []).append(values)
            print(f"{text}, seed {seed}: {rows[-1]['test_top1']:.2%}", flush=True)
            command = {"command": shlex.join([*PROGRAM.split(), *sys.argv[1:]])}
            report = provenance.describe() | command | {"settings": settings} | found
            files.write(config.out, json.dumps(report, indent=1).encode())
    return 0


def main() -> int:
    config = parser.parse_options(sys.argv[1:], RunsConfig, program=PROGRAM)
    series.keep_compiled(config.cache_folder / "compiled")
    return report_errors(lambda: run_all(config))


if __name__ == "__main__":
    sys.exit(main())
