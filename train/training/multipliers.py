"""Summary of INSGD's learning rate multipliers after an epoch."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def summarize(
    multipliers: Mapping[str, np.ndarray], sizes: Mapping[str, int], eps: float
) -> dict[str, Any]:
    """Summarizes multipliers for the metrics of an epoch.

    Args:
        multipliers: multipliers by weight, from
            `insgd_optax.learning_rate_multipliers`.
        sizes: number of entries of each weight.
        eps: the optimizer's lower bound of the divisor.

    Returns:
        "mean_multiplier": mean over all scaled parameters. The learning rate times this
        mean is INSGD's effective learning rate, at which SGD is comparable.
        "at_floor": names of the weights whose multiplier is at its maximum, 1 / eps,
        because the power P of their input is near or below 1 and log P is below eps.
        "weights_at_floor": the number of these weights.
    """
    means = [np.mean(multiplier) for multiplier in multipliers.values()]
    # With a tolerance for float32 division.
    most = (1 - 1e-6) / eps
    at_floor = [name for name, value in multipliers.items() if np.max(value) >= most]
    return {
        "weights_at_floor": len(at_floor),
        "at_floor": at_floor,
        "mean_multiplier": float(
            np.average(means, weights=[sizes[name] for name in multipliers])
        ),
    }
