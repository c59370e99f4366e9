"""Draws the figures of docs/robustness.md from the tables of that page.

python docs/examples/robustness_figures.py [FOLDER]
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # `train` runs from the checkout.

from train.experiments import plots
from train.experiments.rates.points import Point
from train.experiments.reports import MeanStd

PAGE = ROOT / "docs" / "robustness.md"
MARGIN = 1.0
TITLES = {
    "robustness_digits": "custom_cnn on digits, 20 epochs, 3 seeds",
    "robustness_images": "custom_cnn on CIFAR-10 (JPEG), 3 epochs, 1 seed",
    "robustness_no_batch_norm": (
        "custom_cnn without batch normalization on CIFAR-10 (JPEG), 3 epochs, 1 seed"
    ),
}
ROUNDING = 0.05


def read(page):
    """Returns the optimizers' points, and their usable rates, by name of the figure."""
    parts = re.split(r"!\[[^]]*\]\(images/(robustness_\w+)\.png\)", page)
    return {
        name: read_tables(text)
        for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def read_tables(text):
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| ")
    ]
    first, second = [n for n, row in enumerate(rows) if row[0] == "Optimizer"][:2]
    points: dict[str, list[Point]] = {}
    usable = {}
    for name, best, rates, *_ in rows[first + 1 : second]:
        # As "98.24 ± 1.40 @ 0.178", and "0.00562 - >= 10".
        [(mean, best_rate)] = re.findall(r"([\d.]+).* @ (\S+)", best)
        low, high = (float(each.split()[-1]) for each in rates.split(" - "))
        usable[name] = low, high
        accuracies = next(row[1] for row in rows[second + 1 :] if row[0] == name)
        points[name] = []
        for accuracy, rate in (each.split(" @ ") for each in accuracies.split(", ")):
            value = float(mean if rate == best_rate else accuracy)
            # Rounding must not make a learning rate usable.
            if not low <= float(rate) <= high:
                value -= ROUNDING
            points[name].append(
                Point(float(rate), float(rate), MeanStd(value, None), 1)
            )
    return points, usable


def draw(folder):
    for name, (points, _) in read(PAGE.read_text()).items():
        path = folder / f"{name}.png"
        plots.plot_robustness(points, MARGIN, path, TITLES[name])
        print(path)


if __name__ == "__main__":
    draw(pathlib.Path(*sys.argv[1:] or ["docs/images"]))
