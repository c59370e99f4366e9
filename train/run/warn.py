"""Warnings about options and metrics."""

import math

from train.markdown import counted
from train.run.metrics import EpochMetrics
from train.run_config import RunConfig
from train.training import optimizers


def of_schedule(config: RunConfig) -> str | None:
    """Returns a warning if a run is too short for its learning rate schedule."""
    epochs, warmup = config.epochs, config.warmup_epochs
    if warmup >= epochs:
        return (
            f"--warmup-epochs {warmup} takes the whole run of "
            f"{counted(epochs, 'epoch')}, so the learning rate rises until the end. "
            "Use a shorter warm-up or more --epochs."
        )
    if config.schedule == "steps" and min(config.milestones) >= epochs:
        return (
            f"--schedule steps: the learning rate never drops, because the first of "
            f"--milestones {' '.join(map(str, config.milestones))} is not before the "
            f"end of the run of {counted(epochs, 'epoch')}. Use earlier milestones."
        )
    period = config.restart_epochs
    if config.schedule == "cosine" and epochs - warmup < period:
        share = 0.5 * (1 + math.cos(math.pi * (epochs - warmup) / period))
        return (
            f"--schedule cosine: the learning rate decays only to {share:.3g} of its "
            f"initial value, because --restart-epochs {period} exceeds the run's "
            f"{counted(epochs - warmup, 'epoch')}"
            f"{' after the warm-up' if warmup else ''}. Use --restart-epochs "
            f"{epochs - warmup}."
        )
    return None


def of_divergence(config: RunConfig, step: int, steps_per_epoch: int) -> str:
    """Returns a message with the step at which training diverged, and remedies."""
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
        and config.clip_norm is None  # The two cannot be combined.
    ):
        remedies.append("--polyak-factor 1")
    return (
        f"training diverged: the loss or a parameter is not finite after step {step}, "
        f"in epoch {epoch} of {config.epochs}. Start a new run with "
        f"{' or '.join(remedies)}."
    )


def of_floor(row: EpochMetrics) -> str:
    """Returns a warning about an epoch that ends with weights at INSGD's floor."""
    return (
        f"after epoch {row['epoch']} INSGD multiplies the learning rate by "
        f"{max(row['multipliers'].values()):.0f}, its largest multiplier, for: "
        f"{', '.join(row['at_floor'])}. Their input power is near or below 1, for "
        "example because an earlier layer died or its output is scaled down. Try "
        "--normalizer log1p, which never multiplies by more than 1, the other norm "
        "(--optimizer insgd-l1 or insgd-l2) or a smaller --learning-rate, and inspect "
        "the inputs of these layers."
    )
