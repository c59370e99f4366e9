"""Reports a table with our results next to the paper's, as Markdown and JSON."""

import dataclasses
import functools
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from train import markdown
from train.experiments import results, series
from train.experiments.paper import controls, presets
from train.experiments.paper.presets import PaperRow, Table
from train.run.metrics import EpochMetrics
from train.run_config import RunConfig


@dataclasses.dataclass(frozen=True)
class TableRow:
    """A row of a table: the paper's values, our runs and their results.

    Attributes:
        configs: the runs, one per seed; None for a run not known yet.
        control: what differs from the paper's row above; empty for that row.
        paper: the paper's row; None for a control.
    """

    configs: tuple[RunConfig | None, ...]
    control: str = ""
    paper: PaperRow | None = None

    @property
    def known(self) -> list[RunConfig]:
        """The known runs, finished or not."""
        return [config for config in self.configs if config is not None]

    @functools.cached_property
    def finished(self) -> dict[RunConfig, list[EpochMetrics]]:
        """The finished runs with their metrics."""
        return {
            config: rows
            for config in self.known
            if (rows := series.finished_metrics(config)) is not None
        }

    @property
    def learning_rates(self) -> list[float]:
        """Learning rates of the known runs."""
        return [config.initial_learning_rate for config in self.known]

    @property
    def effective_rates(self) -> list[float]:
        """Learning rate times mean multiplier of the finished runs."""
        return [
            config.initial_learning_rate * results.mean_multiplier(rows)
            for config, rows in self.finished.items()
        ]

    @property
    def accuracies(self) -> results.Accuracies | None:
        """Accuracies of the finished runs; None if there are none."""
        return (
            results.accuracies(list(self.finished.values())) if self.finished else None
        )

    def cells(self, columns: Iterable[str], top5: bool) -> list[str]:
        """Returns the cells of the row in Markdown."""
        # If no run is known, only optimizer and learning rate differ from the row
        # above.
        sample = self.known[0] if self.known else None
        found = self.accuracies
        cells = [
            f"+ {self.control}" if sample is None or self.control else sample.optimizer,
            *("" if sample is None else _text(getattr(sample, n)) for n in columns),
            _mean(self.learning_rates),
            _mean(self.effective_rates),
            str((self.paper and self.paper.top1) or ""),
            str(found.best) if found else "not run",
            str(found.last) if found else "not run",
        ]
        if top5:
            cells += [
                str((self.paper and self.paper.top5) or ""),
                str(found.top5) if found else "",
            ]
        return [*cells, f"{len(self.finished)}/{len(self.configs)}"]

    def to_json(self) -> dict[str, Any]:
        """Returns the row in JSON-serializable form."""
        return {
            "optimizer": self.known[0].optimizer if self.known else None,
            "control": self.control,
            "learning_rates": self.learning_rates,
            "effective_rates": self.effective_rates,
            **{
                f"paper_{name}": (printed := getattr(self.paper, name, None))
                and printed._asdict()
                for name in ("top1", "top5")
            },
            "measured": self.accuracies and self.accuracies.to_json(),
            "runs": [series.run_path(config).name for config in self.finished],
        }


def dry_run(
    number: int,
    table: Table,
    epochs: int,
    *,
    seeds: int,
    dataset: str,
    with_controls: bool,
) -> str:
    """Formats the presets of a table with the options given."""
    header = ["Optimizer", *table.columns.values(), "Learning rate", "Paper, top-1"]
    top5 = _has_top5(table)
    header += ["Paper, top-5"] * top5
    batch = "batch_size" not in table.columns
    header += ["Network", *(["Batch"] * batch), "Epochs", "Schedule"]
    header += ["Weight decay", "Momentum"]
    rows = []
    for row in table.rows:
        chosen = presets.options(table, row, epochs)
        rows.append(
            [
                chosen["optimizer"],
                *(_text(chosen[name]) for name in table.columns),
                f"{chosen['learning_rate']:g}",
                str(row.top1),
                *([str(row.top5)] * top5),
                _network(chosen),
                *([str(chosen["batch_size"])] * batch),
                str(chosen["epochs"]),
                schedule_text(chosen),
                f"{chosen['weight_decay']:g}",
                f"{chosen['momentum']:g}",
            ]
        )
        if with_controls:
            for name in controls.names(chosen["optimizer"]):
                rows.append([f"+ {name}", *([""] * (len(header) - 1))])
    return "\n\n".join(
        [
            f"{_title(number, table)} {dataset}, {markdown.counted(seeds, 'seed')}.",
            markdown.table(header, rows),
            *notes(table, seeds, epochs, dataset)[1:],
        ]
    )


def schedule_text(options: dict[str, Any]) -> str:
    """Describes a schedule."""
    if options["schedule"] == "steps":
        epochs = "/".join(map(str, options["milestones"]))
        return f"x{options['milestone_factor']:g} after epochs {epochs}"
    if options["schedule"] == "cosine":
        period = markdown.counted(options["restart_epochs"], "epoch")
        return f"cosine, restarts every {period}"
    return options["schedule"]


def report(
    number: int, table: Table, rows: Sequence[TableRow], notes: Sequence[str]
) -> tuple[str, dict[str, Any]]:
    """Returns the table with results, in Markdown and in JSON-serializable form."""
    top5 = _has_top5(table)
    header = ["Optimizer", *table.columns.values(), "Learning rate"]
    header += ["Rate x multiplier", "Paper, top-1", "Best epoch", "Last epoch"]
    header += ["Paper, top-5", "Top-5 of best"] * top5
    header += ["Seeds"]
    provenance = results.provenance([config for row in rows for config in row.known])
    source = (
        f"From commit {', '.join(provenance['commits']) or 'none'}, on "
        f"{', '.join(provenance['devices']) or 'no device'}."
    )
    notes = [*notes, source]
    text = "\n\n".join(
        [
            _title(number, table),
            markdown.table(
                header,
                [row.cells(table.columns, top5) for row in rows],
            ),
            "\n".join(f"- {note}" for note in notes),
        ]
    )
    entries = [row.to_json() for row in rows]
    return text + "\n", {"table": number, "rows": entries, "notes": notes, **provenance}


def _mean(values: list[float]) -> str:
    return f"{statistics.fmean(values):.3g}" if values else ""


def notes(table: Table, seeds: int, epochs: int, dataset: str) -> list[str]:
    """Explains the accuracies, then how our experiments differ from the paper's."""
    how = (
        "Accuracies in percent, mean ± standard deviation over seeds. Best epoch: the "
        "one with the highest top-1 on the test images, selected as in the paper, "
        "which flatters every row. Last epoch: no selection."
    )
    found = [how]
    if epochs != table.epochs:
        schedules = {
            schedule_text(presets.options(table, row, epochs)) for row in table.rows
        }
        found.append(
            f"Trained for {markdown.counted(epochs, 'epoch')} instead of the paper's "
            f"{table.epochs}, with the schedule scaled in proportion: "
            f"{'; '.join(sorted(schedules))}."
        )
    if seeds != table.seeds:
        counted = markdown.counted(seeds, "seed")
        found.append(f"{counted} instead of the paper's {table.seeds}.")
    if dataset != table.dataset:
        found.append(
            f"Trained on {dataset} instead of the paper's {table.dataset}, so our "
            "accuracies and the paper's are not directly comparable."
        )
    return found


def _title(number: int, table: Table) -> str:
    return f"Table {number}. {table.title}."


def _has_top5(table: Table) -> bool:
    return any(row.top5 is not None for row in table.rows)


def _network(chosen: dict[str, Any]) -> str:
    parts = [chosen["model"], *chosen["model_options"]]
    return " ".join([*parts, *(["without batch norm"] * (not chosen["batch_norm"]))])


def _text(value: Any) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value)
