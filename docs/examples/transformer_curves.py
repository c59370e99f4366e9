"""Draws test losses of examples/char_transformer.py over steps and over time.

LOSSES is a JSON list of what its `--json` writes, and STEPS the output of
benchmarks/pages/transformer_steps.py. The time is computed: steps times the ratio of
the step time to AdamW's. The lines are means over seeds, and the bands span the lowest
to the highest loss.

python docs/examples/transformer_curves.py IMAGE LOSSES STEPS
"""

import collections
import json
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import panels

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
    lines = []
    for name, (rate, seeds) in best.items():
        label = f"{LABELS[name]}, learning rate {rate:g}"
        values = np.array([list(run.values()) for run in seeds])
        lines.append((label, np.array(list(seeds[0])), values, ratios[name]))
    time = "Training time (steps of AdamW), two CPU cores"
    figure, axes = panels.draw(lines, "Step", time, "Test loss (nats per character)")
    axes[1].legend(fontsize="small", loc="upper right")
    panels.save(figure, image)


if __name__ == "__main__":
    main()
