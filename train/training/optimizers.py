"""Optimizers by name, set as the paper sets them.

Beside the learning rate the paper gives a momentum of 0.9 to SGD and INSGD and a weight
decay to all. What else its baselines have is PyTorch's default: Adam's decays 0.9 and
0.999, Adadelta's 0.9, RMSprop's 0.99, and no momentum for these and Adagrad. As in
PyTorch, weight decay is an l2 term in the gradient, which these then rescale too.

LARS is `optax.lars`: weight decay, the trust ratio ||w|| / ||g|| times 0.001, and
momentum. Eq. 17 is simpler, without the last two and the factor, with an epsilon.

Momo, Prodigy and D-Adaptation, which find a learning rate by themselves, are
`optax.contrib`'s, with the weight decay they have there, not in the gradient.
"""

import contextlib
import functools
import math
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax

import insgd_optax
from train.training import torch_rules
from train.training.covariance import (
    Covariance,
    SownShapes,
    covariance_diagnostics,
)

# The library's floor, max(log P, EPS): a multiplier of 1 / EPS sits on it.
EPS = 0.01

# step -> the context in which layers sow what the optimizer needs of their inputs.
Capture = Callable[[Any], contextlib.AbstractContextManager[None]]
ExtraMetric = Callable[[Any], jax.Array]


class Optimizer(NamedTuple):
    """What a training step and its diagnostics need to know of an optimizer.

    Attributes:
        tx: the transformation; takes and may ignore `input_norms`,
            `input_covariances` and `value`.
        capture: None for an optimizer that needs nothing of the layers' inputs, and
            then pays nothing.
        multipliers: optimizer state -> factor on the learning rate, by weight; None
            for an optimizer that has none.
        extra_metrics: by name, scalar functions of the optimizer state, to be averaged
            over the steps of an epoch.
        diagnostics: optimizer state -> numbers by name and weight, for the log of an
            epoch; None for an optimizer that has none.
    """

    tx: optax.GradientTransformationExtraArgs
    capture: Capture | None = None
    multipliers: Callable[[Any], dict[str, jax.Array]] | None = None
    extra_metrics: Mapping[str, ExtraMetric] = types.MappingProxyType({})
    diagnostics: Callable[[Any], dict[str, dict[str, jax.Array]]] | None = None


_POLYAK_METRICS = {"polyak_scale": insgd_optax.polyak_scale}


# Options that only some optimizers have, and in words which.
OPTIONS = {
    "momentum": "SGD, LARS, LSALR, Momo, lms-newton and INSGD",
    "scope": "INSGD",
    "normalizer": "INSGD",
    "polyak_factor": "SGD, INSGD and lms-newton",
    "damping": "lms-newton, adamw+cov and muon+cov",
    "covariance_every": "lms-newton, adamw+cov and muon+cov",
    "conv_covariance": "lms-newton, adamw+cov and muon+cov",
}
_MOMENTUM = frozenset({"momentum"})
_BOUNDED = frozenset({"momentum", "polyak_factor"})
_COVARIANCE = frozenset({"damping", "covariance_every", "conv_covariance"})


class _Entry(NamedTuple):
    make: Callable[..., Optimizer]
    learning_rate: float
    options: frozenset[str] = frozenset()  # Those of `OPTIONS` that it has.


def _sgd(learning_rate, *, momentum, weight_decay, polyak_factor, **_) -> Optimizer:
    if polyak_factor is None:
        return _coupled(optax.trace(momentum), learning_rate, weight_decay)
    tx = insgd_optax.clip_by_polyak(
        learning_rate,
        factor=polyak_factor,
        momentum=momentum,
        weight_decay=weight_decay,
    )
    return Optimizer(tx, extra_metrics=_POLYAK_METRICS)


def _lms_newton(
    learning_rate,
    *,
    momentum,
    weight_decay,
    polyak_factor,
    covariance,
    sown_shapes,
    **_,
) -> Optimizer:
    tx = insgd_optax.lms_newton(
        learning_rate,
        covariance_decay=covariance.decay,
        momentum=momentum,
        weight_decay=weight_decay,
        polyak_factor=polyak_factor,
        **covariance.options(sown_shapes),
    )
    return Optimizer(
        tx,
        capture=covariance.capture,
        extra_metrics={} if polyak_factor is None else _POLYAK_METRICS,
        diagnostics=covariance_diagnostics,
    )


def _redirected(
    rule, learning_rate, *, weight_decay, covariance, sown_shapes, **_
) -> Optimizer:
    """An optimizer whose steps the covariance turns, at the lengths they have."""
    tx = optax.chain(
        rule(1.0, weight_decay=0.0),
        insgd_optax.scale_by_input_covariance(
            covariance.decay, **covariance.options(sown_shapes)
        ),
        # The rule's own steps go downhill already.
        optax.scale(-1.0),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )
    return Optimizer(tx, capture=covariance.capture, diagnostics=covariance_diagnostics)


def _muon(learning_rate, **options) -> optax.GradientTransformation:
    return optax.contrib.muon(
        learning_rate, muon_weight_dimension_numbers=_matrices, **options
    )


def _matrices(params: Any) -> Any:
    """Which kernels Muon takes for matrices, and which of their axes are inputs."""

    def dimensions(keys: tuple[Any, ...], weight: Any) -> Any:
        path = [str(getattr(key, "key", key)) for key in keys]
        if path[-1] != "kernel" or weight.ndim < 2:
            return None
        if {"query", "key", "value"} & set(path):
            return optax.contrib.MuonDimensionNumbers(0, tuple(range(1, weight.ndim)))
        *inputs, output = range(weight.ndim)
        return optax.contrib.MuonDimensionNumbers(tuple(inputs), output)

    return jax.tree_util.tree_map_with_path(dimensions, params)


def _rescaled(scale_by, learning_rate, *, weight_decay, **_) -> Optimizer:
    return _coupled(scale_by(), learning_rate, weight_decay)


def _coupled(rule, learning_rate, weight_decay) -> Optimizer:
    return _plain(
        optax.chain(
            optax.add_decayed_weights(weight_decay),
            rule,
            optax.scale_by_learning_rate(learning_rate),
        )
    )


def _plain(tx: optax.GradientTransformation) -> Optimizer:
    return Optimizer(optax.with_extra_args_support(tx))


def _lars(learning_rate, *, momentum, weight_decay, **_) -> Optimizer:
    return _plain(optax.lars(learning_rate, weight_decay, momentum=momentum))


def _lsalr(learning_rate, *, momentum, weight_decay, **_) -> Optimizer:
    return _plain(
        insgd_optax.lsalr(learning_rate, momentum=momentum, weight_decay=weight_decay)
    )


def _insgd_as_released(learning_rate, *, momentum, weight_decay, **_) -> Optimizer:
    return Optimizer(
        tx=insgd_optax.insgd_as_released(
            learning_rate, momentum=momentum, weight_decay=weight_decay
        ),
        capture=lambda step: insgd_optax.capture_released_norms(),
    )


def _momo(learning_rate, *, momentum, weight_decay, **_) -> Optimizer:
    return _plain(
        optax.contrib.momo(learning_rate, beta=momentum, weight_decay=weight_decay)
    )


def _decoupled(rule, learning_rate, *, weight_decay, **_) -> Optimizer:
    return _plain(rule(learning_rate, weight_decay=weight_decay))


def _insgd(
    learning_rate,
    *,
    p,
    momentum,
    weight_decay,
    scope,
    normalizer,
    polyak_factor,
    **_,
) -> Optimizer:
    return Optimizer(
        tx=insgd_optax.insgd(
            learning_rate,
            momentum=momentum,
            weight_decay=weight_decay,
            normalizer=normalizer,
            eps=EPS,
            scope=scope,
            polyak_factor=polyak_factor,
        ),
        capture=lambda step: insgd_optax.capture_input_norms(
            p=p, norm_layers=scope == "layer"
        ),
        multipliers=insgd_optax.learning_rate_multipliers,
        extra_metrics={} if polyak_factor is None else _POLYAK_METRICS,
    )


# The learning rates are those of Table 3. The paper uses no others: RMSprop's is
# PyTorch's, LARS moves a weight by about a thousandth of its norm a step, and Momo,
# Prodigy and D-Adaptation have optax's.
_OPTIMIZERS = {
    "sgd": _Entry(_sgd, 0.1, _BOUNDED),
    "adam": _Entry(functools.partial(_rescaled, optax.scale_by_adam), 0.001),
    "adagrad": _Entry(functools.partial(_rescaled, torch_rules.scale_by_adagrad), 0.1),
    "adadelta": _Entry(functools.partial(_rescaled, optax.scale_by_adadelta), 0.1),
    "rmsprop": _Entry(
        functools.partial(
            _rescaled,
            functools.partial(optax.scale_by_rms, decay=0.99, eps_in_sqrt=False),
        ),
        0.01,
    ),
    "lars": _Entry(_lars, 1.0, _MOMENTUM),
    "lsalr": _Entry(_lsalr, 0.1, _MOMENTUM),
    "momo": _Entry(_momo, 1.0, _MOMENTUM),
    "prodigy": _Entry(functools.partial(_decoupled, optax.contrib.prodigy), 1.0),
    "dadapt-adamw": _Entry(
        functools.partial(_decoupled, optax.contrib.dadapt_adamw), 1.0
    ),
    "adamw": _Entry(functools.partial(_decoupled, optax.adamw), 0.001),
    "muon": _Entry(functools.partial(_decoupled, _muon), 0.01),
    "lms-newton": _Entry(_lms_newton, 0.03, _BOUNDED | _COVARIANCE),
    "adamw+cov": _Entry(
        functools.partial(_redirected, optax.adamw), 0.003, _COVARIANCE
    ),
    "muon+cov": _Entry(functools.partial(_redirected, _muon), 0.01, _COVARIANCE),
    "insgd-as-released": _Entry(_insgd_as_released, 0.1, _MOMENTUM),
}
_INSGD_PREFIX = "insgd-l"
_INSGD_LEARNING_RATE = 0.1

NAMES = (*_OPTIMIZERS, "insgd-l1", "insgd-l2", "insgd-linf")
CHOICES = f"{'|'.join(NAMES)}, or insgd-lP with any P from 1"


def _entry(name: str) -> _Entry:
    if name in _OPTIMIZERS:
        return _OPTIMIZERS[name]
    try:
        prefix, p = name[: len(_INSGD_PREFIX)], float(name[len(_INSGD_PREFIX) :])
    except ValueError:
        prefix, p = "", math.nan
    if prefix != _INSGD_PREFIX or not p >= 1:
        raise ValueError(f"unknown optimizer {name!r}: give one of {CHOICES}")
    return _Entry(
        functools.partial(_insgd, p=p),
        _INSGD_LEARNING_RATE,
        _BOUNDED | {"scope", "normalizer"},
    )


def register(name: str, make: Callable[..., Optimizer], learning_rate: float) -> None:
    """Makes an optimizer of your own known by a name, in this process.

    Args:
        name: not yet another's.
        make: from a learning rate, a number or a schedule, and the keywords of
            `create`, of which it may ignore any.
        learning_rate: when none is given.

    Raises:
        ValueError: if the name is taken.
    """
    if name in _OPTIMIZERS or name.startswith(_INSGD_PREFIX):
        raise ValueError(f"{name!r} is the name of an optimizer already")
    # What it makes of its keywords is not known here; a bound it has not.
    _OPTIMIZERS[name] = _Entry(make, learning_rate, OPTIONS.keys() - {"polyak_factor"})


def check_name(name: str) -> None:
    """Raises a ValueError that lists the names, unless `name` is an optimizer's."""
    _entry(name)


def is_insgd(name: str) -> bool:
    """Whether an optimizer is the paper's own rule, with scope and normalizer."""
    return name not in _OPTIMIZERS


def uses_covariance(name: str) -> bool:
    """Whether an optimizer uses the covariance of the layers' inputs."""
    return "damping" in _entry(name).options


def can_be_bounded(name: str) -> bool:
    """Whether an optimizer takes `polyak_factor`."""
    return has_option(name, "polyak_factor")


def has_option(name: str, option: str) -> bool:
    """Whether an optimizer has one of `OPTIONS`."""
    return option in _entry(name).options


def default_learning_rate(name: str) -> float:
    """The learning rate of an optimizer when none is given."""
    return _entry(name).learning_rate


def create(
    name: str,
    learning_rate: optax.Schedule | float,
    *,
    momentum: float,
    weight_decay: float,
    scope: str,
    normalizer: str,
    polyak_factor: float | None = None,
    covariance: Covariance = Covariance(),  # noqa: B008  # immutable
    sown_shapes: SownShapes | None = None,
) -> Optimizer:
    """Makes an optimizer by its name.

    Args:
        name: one of `NAMES`, or "insgd-l" and any p >= 1.
        learning_rate: a rate or a schedule.
        momentum: of SGD, LARS, LSALR, Momo and INSGD.
        weight_decay: factor of the l2 term added to the gradients; of those that find
            a learning rate, optax's.
        scope: of INSGD, "kernel" or "layer".
        normalizer: of INSGD, "log", "power" or "log1p".
        polyak_factor: of SGD and INSGD, see `insgd_optax.clip_by_polyak`; None for no
            bound.
        covariance: of `lms-newton` and those that end in `+cov`.
        sown_shapes: for these, what the network sows within a capture; None takes the
            forms of the matrices from the kernels' shapes.

    Returns:
        The optimizer.

    Raises:
        ValueError: for an unknown name; the message lists the names.
    """
    return _entry(name).make(
        learning_rate,
        momentum=momentum,
        weight_decay=weight_decay,
        scope=scope,
        normalizer=normalizer,
        polyak_factor=polyak_factor,
        covariance=covariance,
        sown_shapes=sown_shapes,
    )
