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

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import panels

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
    lines = []
    # The best last: its line is on top.
    for text, found in sorted(curves.items(), key=lambda item: np.mean(item[1], 0)[-1]):
        name, _, rate = text.partition("@")
        seeds = np.array(found)
        epochs = np.arange(1, seeds.shape[1] + 1)
        label = f"{LABELS.get(name, name)}, learning rate {rate}"
        lines.append((label, epochs, seeds, ratios[name]))
    time = "Training time (epochs of SGD), two CPU cores"
    figure, axes = panels.draw(lines, "Epoch", time, "Test accuracy (%)")
    handles, labels = axes[0].get_legend_handles_labels()
    axes[0].legend(handles[::-1], labels[::-1], fontsize="small", loc="lower right")
    panels.save(figure, image)


if __name__ == "__main__":
    main()
