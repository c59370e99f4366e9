"""Summary of INSGD's learning rate multipliers after an epoch."""

import dataclasses
from collections.abc import Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class MultiplierSummary:
    """Learning rate multipliers of all scaled weights.

    Attributes:
        by_weight: multiplier of each weight; the mean over stacked layers.
        mean: mean over all scaled parameters, weighted by size. The learning rate times
            this mean is INSGD's effective learning rate, at which SGD is comparable.
        at_floor: weights whose multiplier is at its maximum, 1 / eps, because the power
            P of their input is near or below 1 and log P is below eps.
    """

    by_weight: dict[str, float]
    mean: float
    at_floor: tuple[str, ...]


def summarize(
    multipliers: Mapping[str, np.ndarray], sizes: Mapping[str, int], eps: float
) -> MultiplierSummary:
    """Summarizes multipliers.

    Args:
        multipliers: multipliers by weight, from
            `insgd_optax.learning_rate_multipliers`.
        sizes: number of entries of each weight.
        eps: the optimizer's lower bound of the divisor.

    Returns:
        The summary.
    """
    by_weight = {
        name: float(np.mean(multiplier)) for name, multiplier in multipliers.items()
    }
    # With a tolerance for float32 division.
    floor = (1 - 1e-6) / eps
    return MultiplierSummary(
        by_weight,
        mean=float(
            np.average(
                list(by_weight.values()), weights=[sizes[name] for name in by_weight]
            )
        ),
        at_floor=tuple(
            name for name, value in multipliers.items() if np.max(value) >= floor
        ),
    )
