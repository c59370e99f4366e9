"""What INSGD did to the learning rate: the multipliers of an epoch, in figures."""

import dataclasses
from collections.abc import Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class MultiplierSummary:
    """Multipliers of all scaled weights.

    Attributes:
        by_weight: each weight's, the mean if its stacked layers have one each.
        mean: over all scaled parameters, so that a weight counts as much as it has
            entries. Learning rate x mean is the rate INSGD effectively took: the one
            to give to SGD when the two are compared.
        at_floor: the weights whose multiplier is the largest there is, 1 / eps: the
            power of their input is near or below 1, and log P no longer counts.
    """

    by_weight: dict[str, float]
    mean: float
    at_floor: tuple[str, ...]


def summarize(
    multipliers: Mapping[str, np.ndarray], sizes: Mapping[str, int], eps: float
) -> MultiplierSummary:
    """Summarizes multipliers.

    Args:
        multipliers: by weight, from `insgd_optax.learning_rate_multipliers`.
        sizes: entries of each weight, by the same names.
        eps: the optimizer's floor of the divisor.

    Returns:
        The summary.
    """
    by_weight = {
        name: float(np.mean(multiplier)) for name, multiplier in multipliers.items()
    }
    # One part in a million below it is on it: a division in float32.
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
