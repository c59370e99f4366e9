"""`python -m train compare`: several optimizers on one setting, as in Figure 3."""

import dataclasses
import json

from train import markdown, plots, results, series, variants
from train.config import Setting
from train.worker_pool import Processes


@dataclasses.dataclass(frozen=True)
class CompareConfig(Setting):
    """Run several optimizers on one setting, and draw their test errors over epochs.
    Stopped, the same command goes on."""

    optimizers: tuple[str, ...] = ("sgd", "adam", "insgd-l1", "insgd-l2")
    """Each as NAME[+layer][+log1p|+power][@RATE], such as
    insgd-l2+log1p@0.25; without a rate, the optimizer's own."""
    seeds: int = 1
    """Runs of each."""
    processes: Processes = 1

    def __post_init__(self):
        super().__post_init__()
        variants.check(self.optimizers, self.seeds)


def compare(config: CompareConfig) -> int:
    """Runs what is missing; prints and writes the table, draws the picture."""
    configs = {
        text: [variants.parse(text).config(config, n) for n in range(config.seeds)]
        for text in config.optimizers
    }
    status = series.complete(series.by_seed(configs.values()), config.processes)
    finished = {
        text: [rows for each in runs if (rows := series.finished(each))]
        for text, runs in configs.items()
    }
    finished = {text: runs for text, runs in finished.items() if runs}
    if not finished:
        return status

    found = {text: results.accuracies(runs) for text, runs in finished.items()}
    table = markdown.table(
        ("Optimizer", "Learning rate", "Last epoch", "Best epoch", "Seeds"),
        [
            (
                text,
                f"{configs[text][0].initial_learning_rate:g}",
                str(each.last),
                str(each.best),
                f"{each.seeds}/{config.seeds}",
            )
            for text, each in found.items()
        ],
    )
    note = (
        "Top-1 on the test images in percent, mean ± standard deviation over seeds; the "
        "best epoch is picked on these same images."
    )
    folder = series.report_folder("compare", config)
    (folder / "compare.md").write_text(f"{table}\n\n{note}\n")
    values = {text: each.to_json() for text, each in found.items()}
    (folder / "compare.json").write_text(json.dumps(values, indent=2) + "\n")
    plots.plot_test_error(finished, folder / "test_error.png")
    print(
        f"\n{table}\n\n{note}\n\nIn {folder}: compare.md, compare.json, test_error.png"
    )
    return status
