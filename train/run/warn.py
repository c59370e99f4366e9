"""What a user must hear of a run's options and metrics, each once."""

import math

from train.config import RunConfig
from train.run.metrics import EpochMetrics
from train.training import optimizers


def of_schedule(config: RunConfig) -> str | None:
    """Says where a run is too short for its learning rate schedule; else None."""
    epochs, warmup = config.epochs, config.warmup_epochs
    if warmup >= epochs:
        return (
            f"--warmup-epochs {warmup} takes all of the {epochs} epochs: the learning "
            "rate rises until the end. Give a shorter warm-up, or more --epochs."
        )
    if config.schedule == "steps" and min(config.milestones) >= epochs:
        return (
            f"--schedule steps: the learning rate never drops, as the first of "
            f"--milestones {' '.join(map(str, config.milestones))} is not before the "
            f"end of the {epochs} epochs. Give earlier milestones."
        )
    period = config.restart_epochs
    if config.schedule == "cosine" and epochs - warmup < period:
        share = 0.5 * (1 + math.cos(math.pi * (epochs - warmup) / period))
        return (
            f"--schedule cosine: the learning rate falls to {share:.3g} of its start "
            f"alone, as --restart-epochs {period} is more than the {epochs - warmup} "
            f"epochs there are. Give --restart-epochs {epochs - warmup}."
        )
    return None


def of_divergence(config: RunConfig, step: int, steps_per_epoch: int) -> str:
    """Says when training diverged, and what to try."""
    epoch = (step - 1) // steps_per_epoch + 1
    remedies = [f"a smaller --learning-rate than {config.initial_learning_rate:g}"]
    if not config.warmup_epochs:
        remedies.append("some --warmup-epochs")
    if (
        optimizers.has_option(config.optimizer, "normalizer")
        and config.normalizer != "log1p"
    ):
        remedies.append("--normalizer log1p")
    if (
        optimizers.has_option(config.optimizer, "polyak_factor")
        and config.polyak_factor is None
    ):
        remedies.append("--polyak-factor 1")
    return (
        f"training diverged: the loss or a weight is not finite after step {step}, in "
        f"epoch {epoch} of {config.epochs}. Start a new run with "
        f"{' or '.join(remedies)}."
    )


class OnceWarner:
    """Remembers what has been said."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def new(self, row: EpochMetrics) -> list[str]:
        """What an epoch's metrics give cause for, and was not said before."""
        found = {}
        if row.get("at_floor"):
            found["floor"] = _at_floor(row)
        new = [text for kind, text in found.items() if kind not in self._said]
        self._said |= found.keys()
        return new


def _at_floor(row: EpochMetrics) -> str:
    return (
        f"after epoch {row['epoch']} INSGD multiplies the learning rate by "
        f"{max(row['multipliers'].values()):.0f}, its largest multiplier, for: "
        f"{', '.join(row['at_floor'])}. The power of these layers' input is near or "
        "below 1, as when a layer before dies or its output is scaled down. Remedies: "
        "--normalizer log1p, which never multiplies by more than 1; the other norm "
        "(--optimizer insgd-l1 or insgd-l2); a smaller --learning-rate; and a look at "
        "those layers' inputs."
    )
