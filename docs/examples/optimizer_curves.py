"""Draws test accuracy over epochs and over time, from the report of a `compare`.

The time is computed, not measured: the epochs times the ratio of the optimizer's step
time to SGD's from `python -m train benchmark --optimizer NAME`. The runs may thus come
from other devices, or from processes that shared cores. One unit is an epoch of SGD.

python docs/examples/optimizer_curves.py IMAGE COMPARE_JSON BENCHMARK_FOLDER...
"""

import json
import pathlib
import sys

import numpy as np
from matplotlib import pyplot as plt

LABELS = {
    "sgd": "SGD",
    "adamw": "AdamW",
    "insgd-l2": "INSGD",
    "lms-newton": "LMS-Newton",
    "muon": "Muon",
}


def step_ratios(folders):
    """The step time of each optimizer, relative to SGD's."""
    ratios = {"sgd": 1.0}
    for folder in folders:
        path = pathlib.Path(folder) / "benchmark.json"
        for result in json.loads(path.read_text())["results"]:
            name = {"insgd": "insgd-l2"}.get(result["optimizer"], result["optimizer"])
            ratios[name] = result["overhead"]["of_medians"]
    return ratios


def main() -> None:
    image, report, *benchmarks = sys.argv[1:]
    ratios = step_ratios(benchmarks)
    curves = json.loads(pathlib.Path(report).read_text())["test_top1"]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    # The best last: its line is on top.
    for text, found in sorted(curves.items(), key=lambda item: np.mean(item[1], 0)[-1]):
        name, _, rate = text.partition("@")
        seeds = np.array(found)
        epochs = np.arange(1, seeds.shape[1] + 1)
        for ax, x in zip(axes, (epochs, epochs * ratios[name]), strict=True):
            label = f"{LABELS.get(name, name)}, learning rate {rate}"
            (line,) = ax.plot(x, seeds.mean(0), label=label)
            ax.fill_between(
                x, seeds.min(0), seeds.max(0), color=line.get_color(), alpha=0.15
            )
    axes[0].set(xlabel="Epoch", ylabel="Test accuracy (%)")
    axes[1].set_xlabel("Training time (epochs of SGD), two CPU cores")
    handles, labels = axes[0].get_legend_handles_labels()
    axes[0].legend(handles[::-1], labels[::-1], fontsize="small", loc="lower right")
    for ax in axes:
        ax.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(image, dpi=150)


if __name__ == "__main__":
    main()
