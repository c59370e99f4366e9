"""Draws test losses of examples/char_transformer.py over steps and over time.

LOSSES is a JSON list of what its `--json` writes, and STEPS what transformer_steps.py
prints. The time is computed: steps times the ratio of the step time to AdamW's. The
lines are means over seeds, and the bands span the lowest to the highest loss.

python docs/examples/transformer_curves.py IMAGE LOSSES STEPS
"""

import collections
import json
import pathlib
import sys

import numpy as np
from matplotlib import pyplot as plt

LABELS = {
    "adamw": "AdamW",
    "adamw+covariance": "AdamW, then the covariance",
    "muon": "Muon",
    "muon+whitened": "Muon on whitened inputs",
}


def best_runs(runs):
    """By optimizer, its learning rate with the lowest loss for seed 0, and its runs."""
    by_rate = collections.defaultdict(dict)
    for run in runs:
        losses = {int(step): loss for step, loss in run["test_losses"].items()}
        by_rate[run["optimizer"], run["learning_rate"]][run["seed"]] = losses
    best = {}
    for name in LABELS:
        rates = [rate for optimizer, rate in by_rate if optimizer == name]
        rate = min(rates, key=lambda rate: list(by_rate[name, rate][0].values())[-1])
        best[name] = rate, list(by_rate[name, rate].values())
    return best


def main() -> None:
    image, losses, steps = sys.argv[1:]
    best = best_runs(json.loads(pathlib.Path(losses).read_text()))
    rows = map(json.loads, pathlib.Path(steps).read_text().splitlines())
    ratios = {row["optimizer"]: row["ratio"] for row in rows}
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for name, (rate, seeds) in best.items():
        x = np.array(list(seeds[0]))
        y = np.array([list(run.values()) for run in seeds])
        label = f"{LABELS[name]}, learning rate {rate:g}"
        for ax, scale in zip(axes, (1, ratios[name]), strict=True):
            (line,) = ax.plot(x * scale, y.mean(0), label=label)
            color = line.get_color()
            ax.fill_between(x * scale, y.min(0), y.max(0), color=color, alpha=0.15)
    axes[0].set(xlabel="Step", ylabel="Test loss (nats per character)")
    axes[1].set_xlabel("Training time (steps of AdamW), two CPU cores")
    axes[1].legend(fontsize="small", loc="upper right")
    for ax in axes:
        ax.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(image, dpi=150)


if __name__ == "__main__":
    main()
