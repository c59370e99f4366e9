"""The optimizers' `Make` functions, or functions that return them.

A `Make` takes the learning rate, the options and the shapes that the network sows, and
returns an `Optimizer`. Functions such as `rescaled` and `insgd` return a `Make` for a
given rule or norm.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

import insgd_optax
from train.training.optimizers import covariance
from train.training.optimizers.base import (
    ExtraMetric,
    LearningRate,
    Make,
    Optimizer,
    OptimizerConfig,
    SownShapes,
)


def sgd(
    learning_rate: LearningRate, config: OptimizerConfig, _: SownShapes | None
) -> Optimizer:
    """PyTorch's SGD, optionally capped by the Polyak step size."""
    if config.polyak_factor is None:
        return _coupled(
            insgd_optax.dampened_trace(
                config.momentum, config.dampening, config.nesterov
            ),
            learning_rate,
            config.weight_decay,
        )
    tx = insgd_optax.clip_by_polyak(
        learning_rate,
        factor=config.polyak_factor,
        momentum=config.momentum,
        dampening=config.dampening,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )
    return Optimizer(tx, extra_metrics=_polyak_metrics(config))


def lms_newton(
    learning_rate: LearningRate, config: OptimizerConfig, shapes: SownShapes | None
) -> Optimizer:
    """Makes the library's LMS-Newton."""
    tx = insgd_optax.lms_newton(
        learning_rate,
        covariance_decay=config.covariance_decay,
        momentum=config.momentum,
        dampening=config.dampening,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        polyak_factor=config.polyak_factor,
        **covariance.options(config, shapes),
    )
    return Optimizer(
        tx,
        capture=functools.partial(covariance.capture, config),
        capture_every=config.covariance_every,
        extra_metrics=_polyak_metrics(config),
        diagnostics=covariance.diagnostics,
    )


def redirected(rule: Callable[..., Any]) -> Make:
    """Redirects a rule's updates by the inverse covariance, keeping their norms."""
    return _before_weight_decay(
        lambda covariance_decay, **options: optax.chain(
            _direction(rule),
            insgd_optax.scale_by_input_covariance(covariance_decay, **options),
        )
    )


def whitened(rule: Callable[..., Any]) -> Make:
    """Returns a `Make` for a rule that sees the layers' inputs whitened."""
    return _before_weight_decay(
        lambda covariance_decay, **options: insgd_optax.whiten_inputs(
            _direction(rule), covariance_decay, **options
        )
    )


def _direction(rule: Callable[..., Any]) -> optax.GradientTransformation:
    """A rule's updates with the sign of gradients, without weight decay."""
    return optax.chain(rule(1.0, weight_decay=0.0), optax.scale(-1.0))


def _before_weight_decay(link: Callable[..., Any]) -> Make:
    def make(
        learning_rate: LearningRate, config: OptimizerConfig, shapes: SownShapes | None
    ) -> Optimizer:
        tx = optax.chain(
            link(config.covariance_decay, **covariance.options(config, shapes)),
            optax.add_decayed_weights(config.weight_decay),
            optax.scale_by_learning_rate(learning_rate),
        )
        return Optimizer(
            tx,
            capture=functools.partial(covariance.capture, config),
            capture_every=config.covariance_every,
            diagnostics=covariance.diagnostics,
        )

    return make


def rescaled(scale_by: Callable[[], optax.GradientTransformation]) -> Make:
    """Returns a `Make` for a PyTorch rule, which rescales the gradient and l2 term."""
    return lambda learning_rate, config, _: _coupled(
        scale_by(), learning_rate, config.weight_decay
    )


def with_momentum(rule: Callable[..., optax.GradientTransformation]) -> Make:
    """Returns a `Make` for a rule with `momentum`, `nesterov` and `weight_decay`."""
    return lambda learning_rate, config, _: _plain(
        rule(
            learning_rate,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )
    )


def decoupled(rule: Callable[..., optax.GradientTransformation]) -> Make:
    """Returns a `Make` for a rule that takes `weight_decay`."""
    return lambda learning_rate, config, _: _plain(
        rule(learning_rate, weight_decay=config.weight_decay)
    )


def momo(learning_rate: LearningRate, **options: Any) -> optax.GradientTransformation:
    """Optax's Momo, with `momentum` for its `beta`."""
    del options["nesterov"]  # It has none.
    return optax.contrib.momo(learning_rate, beta=options.pop("momentum"), **options)


def muon(learning_rate: LearningRate, **options: Any) -> optax.GradientTransformation:
    """Optax's Muon for all kernels, including those of convolutions."""
    return optax.contrib.muon(
        learning_rate, muon_weight_dimension_numbers=_matrices, **options
    )


def _matrices(params: Any) -> Any:
    """Returns Muon's dimension numbers, which treat each kernel as a matrix."""

    def dimensions(keys: tuple[Any, ...], weight: Any) -> Any:
        path = [str(getattr(key, "key", key)) for key in keys]
        if path[-1] != "kernel" or weight.ndim < 2:
            return None
        if {"query", "key", "value"} & set(path):
            return optax.contrib.MuonDimensionNumbers(0, tuple(range(1, weight.ndim)))
        *inputs, output = range(weight.ndim)
        return optax.contrib.MuonDimensionNumbers(tuple(inputs), output)

    return jax.tree_util.tree_map_with_path(dimensions, params)


def insgd_as_released(
    learning_rate: LearningRate, config: OptimizerConfig, _: SownShapes | None
) -> Optimizer:
    """Makes the rule of the authors' released code."""
    return Optimizer(
        tx=insgd_optax.insgd_as_released(
            learning_rate,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        ),
        capture=lambda step: insgd_optax.capture_released_norms(),
    )


def insgd(p: float) -> Make:
    """Makes the paper's rule with the p-norm of the inputs."""

    def make(
        learning_rate: LearningRate, config: OptimizerConfig, _: SownShapes | None
    ) -> Optimizer:
        return Optimizer(
            tx=insgd_optax.insgd(
                learning_rate,
                power_decay=config.power_decay,
                momentum=config.momentum,
                dampening=config.dampening,
                nesterov=config.nesterov,
                weight_decay=config.weight_decay,
                normalizer=config.normalizer,
                eps=config.eps,
                scope=config.scope,
                polyak_factor=config.polyak_factor,
            ),
            capture=lambda step: insgd_optax.capture_input_norms(
                p=p,
                conv_input=config.conv_input,
                norm_layers=config.scope == "layer",
            ),
            diagnostics=_insgd_diagnostics,
            extra_metrics=_polyak_metrics(config),
        )

    return make


def _insgd_diagnostics(opt_state: Any) -> dict[str, dict[str, jax.Array]]:
    return {
        "multipliers": insgd_optax.learning_rate_multipliers(opt_state),
        "powers": insgd_optax.input_powers(opt_state),
    }


def _polyak_metrics(config: OptimizerConfig) -> dict[str, ExtraMetric]:
    if config.polyak_factor is None:
        return {}
    return {"polyak_scale": insgd_optax.polyak_scale}


def _coupled(
    rule: optax.GradientTransformation, learning_rate: LearningRate, decay: float
) -> Optimizer:
    return _plain(
        optax.chain(
            optax.add_decayed_weights(decay),
            rule,
            optax.scale_by_learning_rate(learning_rate),
        )
    )


def _plain(tx: optax.GradientTransformation) -> Optimizer:
    return Optimizer(optax.with_extra_args_support(tx))
