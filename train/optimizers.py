"""Optimizers by name, set as the paper sets them."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

import insgd_optax

# The library's floor, max(log P, EPS): a multiplier of 1 / EPS sits on it.
EPS = 0.01

Capture = Callable[[], contextlib.AbstractContextManager[None]]


class Optimizer(NamedTuple):
    """What a training step and its diagnostics need to know of an optimizer.

    Attributes:
        tx: the transformation; takes and may ignore `input_norms`.
        capture: the context in which layers sow what `tx` needs of their inputs; None
            for an optimizer that needs nothing, and then pays nothing.
        multipliers: optimizer state -> factor on the learning rate, by weight; None
            for an optimizer that has none.
    """

    tx: optax.GradientTransformationExtraArgs
    capture: Capture | None = None
    multipliers: Callable[[Any], dict[str, jax.Array]] | None = None


class _Entry(NamedTuple):
    make: Callable[..., Optimizer]
    learning_rate: float


def _sgd(learning_rate, *, momentum, weight_decay, **_) -> Optimizer:
    return _plain(
        optax.add_decayed_weights(weight_decay),
        optax.trace(momentum),
        optax.scale_by_learning_rate(learning_rate),
    )


def _adam(learning_rate, *, weight_decay, **_) -> Optimizer:
    # PyTorch's Adam, which the paper compares with: weight decay enters the moments.
    return _plain(
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_adam(),
        optax.scale_by_learning_rate(learning_rate),
    )


def _plain(*transforms: optax.GradientTransformation) -> Optimizer:
    return Optimizer(optax.with_extra_args_support(optax.chain(*transforms)))


def _insgd(
    learning_rate, *, p, momentum, weight_decay, scope, normalizer, **_
) -> Optimizer:
    return Optimizer(
        tx=insgd_optax.insgd(
            learning_rate,
            momentum=momentum,
            weight_decay=weight_decay,
            normalizer=normalizer,
            eps=EPS,
            scope=scope,
        ),
        capture=functools.partial(
            insgd_optax.capture_input_norms, p=p, norm_layers=scope == "layer"
        ),
        multipliers=functools.partial(
            insgd_optax.learning_rate_multipliers, normalizer=normalizer, eps=EPS
        ),
    )


# The default learning rates are those of Table 3.
_OPTIMIZERS = {
    "sgd": _Entry(_sgd, learning_rate=0.1),
    "adam": _Entry(_adam, learning_rate=0.001),
    "insgd-l1": _Entry(functools.partial(_insgd, p=1), learning_rate=0.1),
    "insgd-l2": _Entry(functools.partial(_insgd, p=2), learning_rate=0.1),
}

NAMES = tuple(_OPTIMIZERS)


def default_learning_rate(name: str) -> float:
    """The learning rate of an optimizer when none is given."""
    return _OPTIMIZERS[name].learning_rate


def create(
    name: str,
    learning_rate: optax.Schedule | float,
    *,
    momentum: float,
    weight_decay: float,
    scope: str,
    normalizer: str,
) -> Optimizer:
    """Makes an optimizer by its name.

    Args:
        name: one of `NAMES`.
        learning_rate: a rate or a schedule.
        momentum: of SGD and INSGD; Adam keeps its own.
        weight_decay: factor of the l2 term added to the gradients.
        scope: of INSGD, "kernel" or "layer".
        normalizer: of INSGD, "log", "power" or "log1p".

    Returns:
        The optimizer.
    """
    return _OPTIMIZERS[name].make(
        learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        scope=scope,
        normalizer=normalizer,
    )
