"""Options and diagnostics of the optimizers that use the input covariance."""

import contextlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import insgd_optax
from train.training.networks import train_option
from train.training.optimizers.base import OptimizerConfig, SownShapes


def capture(
    config: OptimizerConfig, step: Any
) -> contextlib.AbstractContextManager[None]:
    """Returns the capture of a step, which may be traced."""
    every = config.covariance_every
    return insgd_optax.capture_input_covariances(
        when=every == 1 or step % every == 0,
        max_rows=config.covariance_max_rows,
        max_dim=config.covariance_max_dim,
        conv_covariance=config.conv_covariance,
    )


def options(config: OptimizerConfig, shapes: SownShapes | None) -> dict[str, Any]:
    """Returns the covariance options of the library's optimizers."""
    like = None if shapes is None else shapes(capture(config, 0))
    return {
        "damping": config.damping,
        "max_dim": config.covariance_max_dim,
        "input_covariances_like": like,
    }


def sown_shapes(
    model: nn.Module,
    image_shape: tuple[int, ...],
    within: contextlib.AbstractContextManager[None],
) -> Any:
    """Returns the shapes a network sows for images of (height, width, channels)."""
    with within:
        return insgd_optax.input_covariance_shapes(
            model,
            jax.random.key(0),
            jnp.zeros((1, *image_shape)),
            **train_option(model, False),
        )


def diagnostics(opt_state: Any) -> dict[str, dict[str, jax.Array]]:
    """Returns condition numbers and cosines by weight."""
    return {
        "condition_numbers": insgd_optax.covariance_condition_numbers(opt_state),
        "cosines": insgd_optax.covariance_cosines(opt_state),
    }
