"""`python -m train table`: reproduces a table of the paper."""

import dataclasses
from typing import Annotated, Any, Literal

import tyro

from train.config import (
    MOST_EPOCHS,
    MOST_SEEDS,
    NOT_STORED,
    MachineConfig,
    check_numbers,
)
from train.data import registry
from train.experiments import reports, series
from train.experiments.paper import controls, presets
from train.experiments.paper import report as table_report
from train.experiments.paper.report import TableRow
from train.experiments.workers import Processes
from train.run_config import RunConfig
from train.training import parallel


@dataclasses.dataclass(frozen=True)
class _TableOptions:
    """Options that select a table and the part of it to run."""

    number: tyro.conf.Positional[Literal[3, 4, 5, 6, 7, 8, 9, 10]]
    """Number of the paper's table."""
    seeds: int | None = None
    """Runs per row. Default: the paper's, 7 (3 in Table 10)."""
    epochs: int | None = None
    """Epochs; milestones move in proportion. Default: the paper's."""
    dataset: Annotated[str | None, tyro.conf.arg(metavar="|".join(registry.NAMES))] = (
        None
    )
    """Dataset. Default: the paper's."""
    rows: tuple[int, ...] = ()
    """Rows of the paper's table to run, counted from 1. Default: all."""
    controls: bool = False
    """Add controls: SGD at INSGD's effective rate, scope=layer, normalizer=log1p."""
    dry_run: bool = False
    """Print the runs and their options without running anything."""


@dataclasses.dataclass(frozen=True)
class TableConfig(MachineConfig, _TableOptions):
    """Reproduce one of the paper's tables; resumable."""

    processes: Processes = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset is not None:
            registry.check_name(self.dataset)
        last = len(presets.TABLES[self.number].rows)
        if not all(1 <= row <= last for row in self.rows):
            raise ValueError(
                f"--rows of table {self.number} are from 1 to {last}, got {self.rows}"
            )
        check_numbers(self, seeds=(1, MOST_SEEDS), epochs=(1, MOST_EPOCHS))

    @property
    def machine_options(self) -> dict[str, Any]:
        """The options of this command that are passed on to each run."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(MachineConfig)
            if field.name not in NOT_STORED
        }


def table(config: TableConfig) -> int:
    """Prints the presets, or runs what is missing and writes and prints the table."""
    chosen = presets.TABLES[config.number]
    numbers = sorted(set(config.rows))
    if numbers:
        some = tuple(chosen.rows[number - 1] for number in numbers)
        chosen = dataclasses.replace(chosen, rows=some)
    epochs = config.epochs or chosen.epochs
    seeds = config.seeds or chosen.seeds
    dataset = registry.absolute(config.dataset or chosen.dataset)
    if config.dry_run:
        print(
            table_report.dry_run(
                config.number,
                chosen,
                epochs,
                seeds=seeds,
                dataset=dataset,
                with_controls=config.controls,
            )
        )
        return 0
    rows = [
        TableRow(
            tuple(
                RunConfig(
                    dataset=dataset,
                    seed=seed,
                    **presets.options(chosen, row, epochs),
                    **config.machine_options,
                )
                for seed in range(seeds)
            ),
            paper=row,
        )
        for row in chosen.rows
    ]
    status = _complete(rows, config.processes)
    if config.controls:
        rows = _with_controls(rows)
        status = status or _complete(rows, config.processes)

    text, values = table_report.report(
        config.number,
        chosen,
        rows,
        table_report.notes(chosen, seeds, epochs, dataset),
    )
    values["settings"] = config.to_json()
    settings: tuple[Any, ...] = (dataset, epochs, seeds, config.controls)
    if parallel.folds_in_device(config.parallel):
        settings += (config.parallel,)
    # A whole table keeps the name it had before rows could be chosen.
    if numbers:
        settings += (numbers,)
    name = f"table{config.number}-{epochs}epochs-{series.digest(settings)}"
    folder = config.runs_dir.expanduser().absolute() / name
    folder.mkdir(parents=True, exist_ok=True)
    reports.write(folder, "table", text, values)
    return status


def _complete(rows: list[TableRow], processes: int) -> int:
    return series.complete(series.by_seed(row.configs for row in rows), processes)


def _with_controls(rows: list[TableRow]) -> list[TableRow]:
    extended = []
    for row in rows:
        extended.append(row)
        extended += [
            TableRow(tuple(configs), name)
            for name, configs in controls.controls_for(row.configs).items()
        ]
    return extended
