"""What a user must hear of a run's metrics, each once."""

import math

from train.run.metrics import Row


class Warnings:
    """Remembers what has been said."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def new(self, row: Row) -> list[str]:
        """What an epoch's metrics give cause for, and was not said before."""
        found = {}
        if row.get("at_floor"):
            found["floor"] = _at_floor(row)
        if not math.isfinite(row["train_loss"]):
            found["diverged"] = (
                "the training loss is not a number after epoch "
                f"{row['epoch']}: training has diverged. Give a smaller "
                "--learning-rate, or some --warmup-epochs."
            )
        new = [text for kind, text in found.items() if kind not in self._said]
        self._said |= found.keys()
        return new


def _at_floor(row: Row) -> str:
    return (
        f"after epoch {row['epoch']} INSGD multiplies the learning rate by "
        f"{max(row['multipliers'].values()):.0f}, its largest multiplier, for: "
        f"{', '.join(row['at_floor'])}. The power of these layers' input is near or "
        "below 1, as when a layer before dies or its output is scaled down. Remedies: "
        "--normalizer log1p, which never multiplies by more than 1; the other norm "
        "(--optimizer insgd-l1 or insgd-l2); a smaller --learning-rate; and a look at "
        "those layers' inputs."
    )
