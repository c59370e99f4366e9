"""Optimizers by name, configured as in the paper.

The paper gives the learning rate, a momentum of 0.9 for SGD and INSGD, and a weight
decay for all. Other options are PyTorch's defaults: decays of 0.9 and 0.999 for Adam,
0.9 for Adadelta and 0.99 for RMSprop, and no momentum for these and Adagrad. As in
PyTorch, weight decay is an l2 term in the gradient, which these optimizers then
rescale.

LARS is `optax.lars`: weight decay, the trust ratio ||w|| / ||g|| times 0.001, and
momentum. Eq. 17 has only the trust ratio, with an epsilon.

Momo, Prodigy and D-Adaptation, which adapt the learning rate, are those of
`optax.contrib`, with its form of weight decay.
"""

import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

import optax

import insgd_optax
from train import own_code
from train.errors import did_you_mean
from train.training.optimizers import own, rules, torch_rules
from train.training.optimizers.base import (
    LearningRate,
    Make,
    Optimizer,
    OptimizerConfig,
    SownShapes,
)

_OF_INSGD = dict.fromkeys(
    ("scope", "normalizer", "eps", "power_decay", "conv_input"), "INSGD"
)
_OF_COVARIANCE = dict.fromkeys(
    (
        *("damping", "covariance_every", "conv_covariance"),
        *("covariance_decay", "covariance_max_rows", "covariance_max_dim"),
    ),
    "lms-newton, adamw+cov, muon+cov and muon+whitened",
)
# Options of some optimizers only, and the optimizers that take them, for messages.
OPTIONS = {
    "momentum": "SGD, LARS, LSALR, Momo, lms-newton and INSGD",
    "dampening": "SGD, INSGD and lms-newton",
    "nesterov": "SGD, LARS, LSALR, lms-newton and INSGD",
    **_OF_INSGD,
    "polyak_factor": "SGD, INSGD and lms-newton",
    **_OF_COVARIANCE,
}
_MOMENTUM = frozenset({"momentum", "nesterov"})
_BOUNDED = _MOMENTUM | {"dampening", "polyak_factor"}
_INSGD = frozenset(_OF_INSGD)
_COVARIANCE = frozenset(_OF_COVARIANCE)


class _Entry(NamedTuple):
    make: Make
    learning_rate: float | None  # None if there is no default.
    options: frozenset[str] = frozenset()  # The entries of `OPTIONS` it takes.


# The learning rates are those of Table 3, for the optimizers in it. RMSprop's is
# PyTorch's, LARS's moves a weight by a thousandth of its norm per step before momentum,
# and those of Momo, Prodigy and D-Adaptation are Optax's.
_OPTIMIZERS = {
    "sgd": _Entry(rules.sgd, 0.1, _BOUNDED),
    "adam": _Entry(rules.rescaled(optax.scale_by_adam), 0.001),
    "adagrad": _Entry(rules.rescaled(torch_rules.scale_by_adagrad), 0.1),
    "adadelta": _Entry(rules.rescaled(optax.scale_by_adadelta), 0.1),
    "rmsprop": _Entry(
        rules.rescaled(
            functools.partial(optax.scale_by_rms, decay=0.99, eps_in_sqrt=False)
        ),
        0.01,
    ),
    "lars": _Entry(rules.with_momentum(optax.lars), 1.0, _MOMENTUM),
    "lsalr": _Entry(rules.with_momentum(insgd_optax.lsalr), 0.1, _MOMENTUM),
    "momo": _Entry(rules.with_momentum(rules.momo), 1.0, frozenset({"momentum"})),
    "prodigy": _Entry(rules.decoupled(optax.contrib.prodigy), 1.0),
    "dadapt-adamw": _Entry(rules.decoupled(optax.contrib.dadapt_adamw), 1.0),
    "adamw": _Entry(rules.decoupled(optax.adamw), 0.001),
    "muon": _Entry(rules.decoupled(rules.muon), 0.01),
    "lms-newton": _Entry(rules.lms_newton, 0.03, _BOUNDED | _COVARIANCE),
    "adamw+cov": _Entry(rules.redirected(optax.adamw), 0.003, _COVARIANCE),
    "muon+cov": _Entry(rules.redirected(rules.muon), 0.01, _COVARIANCE),
    "muon+whitened": _Entry(rules.whitened(rules.muon), 0.01, _COVARIANCE),
    "insgd-as-released": _Entry(rules.insgd_as_released, 0.1, _MOMENTUM),
}
_INSGD_PREFIX = "insgd-l"
_INSGD_LEARNING_RATE = 0.1

NAMES = (*_OPTIMIZERS, "insgd-l1", "insgd-l2", "insgd-linf")
# Optimizers of the library that have another name here.
_MEANT = {"insgd": "insgd-l2"}
CHOICES = (
    f"{', '.join(NAMES)}, insgd-lP for any p-norm of the input with p >= 1, or "
    f"{own_code.FORM}"
)


def _entry(name: str) -> _Entry:
    if name in _OPTIMIZERS:
        return _OPTIMIZERS[name]
    if own_code.is_reference(name):
        return _Entry(
            own.maker(name),
            own.default_learning_rate(name),
            own.options(name) & frozenset(OPTIONS),
        )
    try:
        prefix, p = name[: len(_INSGD_PREFIX)], float(name[len(_INSGD_PREFIX) :])
    except ValueError:
        prefix, p = "", math.nan
    if prefix != _INSGD_PREFIX or not p >= 1:
        meant = did_you_mean(_MEANT.get(name, name), NAMES)
        raise ValueError(
            f"unknown optimizer {name!r}: expected one of {CHOICES}.{meant}"
        )
    return _Entry(rules.insgd(p), _INSGD_LEARNING_RATE, _BOUNDED | _INSGD)


def register(
    name: str, make: Make, learning_rate: float, options: Iterable[str] = ()
) -> None:
    """Registers an optimizer of your own in this process.

    Args:
        name: name of the optimizer, which must be new.
        make: called with `create`'s arguments except the name.
        learning_rate: default learning rate.
        options: the entries of `OPTIONS` that it takes.

    Raises:
        ValueError: if the name is taken, or there is no such option.
    """
    if name in _OPTIMIZERS or name.startswith(_INSGD_PREFIX):
        raise ValueError(f"{name!r} is already the name of an optimizer")
    options = frozenset(options)
    if unknown := options - OPTIONS.keys():
        raise ValueError(
            f"unknown options {sorted(unknown)}: expected some of {', '.join(OPTIONS)}"
        )
    _OPTIMIZERS[name] = _Entry(make, learning_rate, options)


def check_name(name: str) -> None:
    """Raises a ValueError with the valid names unless `name` is one."""
    _entry(name)


def has_option(name: str, option: str) -> bool:
    """Returns whether an optimizer takes one of `OPTIONS`."""
    return option in _entry(name).options


def default_learning_rate(name: str) -> float | None:
    """Returns the default learning rate of an optimizer.

    None for an optimizer of the user that has no default.
    """
    return _entry(name).learning_rate


def create(
    name: str,
    learning_rate: LearningRate,
    config: OptimizerConfig,
    sown_shapes: SownShapes | None = None,
) -> Optimizer:
    """Creates an optimizer by name.

    Args:
        name: one of `NAMES`, a registered name, "insgd-l" and any p >= 1, or
            MODULE:NAME.
        learning_rate: a number or a schedule.
        config: other options; those the optimizer does not take are ignored.
        sown_shapes: returns the shapes that the network sows within a capture, for
            optimizers that use the input covariance. None infers the shapes of the
            matrices from the kernels.

    Returns:
        The optimizer.

    Raises:
        ValueError: if the name is unknown; the message has the valid names.
    """
    optimizer = _entry(name).make(learning_rate, config, sown_shapes)
    if config.clip_norm is None:
        return optimizer
    clip = optax.clip_by_global_norm(config.clip_norm)
    return optimizer._replace(tx=optax.chain(clip, optimizer.tx))
