"""Draws test accuracy over epochs and over seconds, from the runs of a `compare`.

The seconds are computed: epochs times steps times the median step time that
`python -m train benchmark --optimizer NAME` measured, so that runs whose processes
shared their cores can be drawn. SGD's time is the mean over the benchmarks.

python docs/examples/optimizer_curves.py IMAGE RUNS_FOLDER BENCHMARK_FOLDER...
"""

import collections
import json
import pathlib
import sys

import numpy as np
from matplotlib import pyplot as plt

LABELS = {"sgd": "SGD", "adamw": "AdamW", "lms-newton": "LMS-Newton", "muon": "Muon"}


def step_seconds(folders):
    """The median seconds per step of each optimizer, scaled to one speed of SGD."""
    times, sgd = {}, []
    for folder in folders:
        path = pathlib.Path(folder) / "benchmark.json"
        for result in json.loads(path.read_text())["results"]:
            sgd.append(result["seconds"]["sgd"]["median"])
            times[result["optimizer"]] = result["overhead"]["of_medians"]
    return {"sgd": np.mean(sgd)} | {name: r * np.mean(sgd) for name, r in times.items()}


def accuracies(runs_folder):
    """Test accuracy in %, shape (seeds, epochs), and steps, by optimizer and rate."""
    curves, steps = collections.defaultdict(list), {}
    for path in sorted(pathlib.Path(runs_folder).glob("*/record.json")):
        config = json.loads(path.read_text())["config"]
        key = config["optimizer"], config["learning_rate"]
        lines = (path.parent / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        curves[key].append([100 * row["test_top1"] for row in rows])
        steps[key] = [row["step"] for row in rows]
    return {key: (steps[key], np.array(seeds)) for key, seeds in curves.items()}


def main() -> None:
    image, runs_folder, *benchmarks = sys.argv[1:]
    seconds = step_seconds(benchmarks)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for (name, rate), (steps, seeds) in accuracies(runs_folder).items():
        label = f"{LABELS.get(name, name)}, learning rate {rate:g}"
        epochs = np.arange(1, len(steps) + 1)
        for ax, x in zip(axes, (epochs, np.array(steps) * seconds[name]), strict=True):
            (line,) = ax.plot(x, seeds.mean(0), marker="o", label=label)
            if len(seeds) > 1:
                ax.fill_between(
                    x, seeds.min(0), seeds.max(0), color=line.get_color(), alpha=0.15
                )
    axes[0].set(xlabel="Epoch", ylabel="Test accuracy (%)", xticks=epochs)
    axes[1].set_xlabel("Seconds of training steps, two CPU cores")
    axes[0].legend(fontsize="small", loc="lower right")
    for ax in axes:
        ax.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(image, dpi=150)


if __name__ == "__main__":
    main()
