"""How a run measures and uses the covariance of its layers' inputs."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

import insgd_optax

# A capture -> the shapes of what the network sows within it.
SownShapes = Callable[[contextlib.AbstractContextManager[None]], Any]


class Covariance(NamedTuple):
    """How the input's covariance is measured and used.

    Attributes:
        damping: in units of the mean eigenvalue.
        every: steps from one measurement to the next.
        form: of convolutions, "patch" or "kronecker".
        max_rows: the most input vectors that a layer contributes.
        max_dim: the largest matrix.
        decay: of the running mean, a measurement.
    """

    damping: float = 1.0
    every: int = 10
    form: str = "patch"
    max_rows: int = 2048
    max_dim: int = 768
    decay: float = 0.95

    def capture(self, step: Any) -> contextlib.AbstractContextManager[None]:
        """The context of a step, which may be traced."""
        return insgd_optax.capture_input_covariances(
            when=step % self.every == 0,
            max_rows=self.max_rows,
            max_dim=self.max_dim,
            conv_covariance=self.form,
        )

    def options(self, sown_shapes: SownShapes | None) -> dict[str, Any]:
        """What the library's optimizers take."""
        like = None if sown_shapes is None else sown_shapes(self.capture(0))
        return {
            "damping": self.damping,
            "max_dim": self.max_dim,
            "input_covariances_like": like,
        }


def sown_shapes(
    model: nn.Module,
    image_shape: tuple[int, ...],
    capture: contextlib.AbstractContextManager[None],
) -> Any:
    """What a network sows within a capture, for images of (height, width, channels)."""
    with capture:
        return insgd_optax.input_covariance_shapes(
            model, jax.random.key(0), jnp.zeros((1, *image_shape)), train=False
        )


def covariance_diagnostics(opt_state: Any) -> dict[str, dict[str, jax.Array]]:
    """Condition numbers and cosines by weight, for the log of an epoch."""
    return {
        "condition_numbers": insgd_optax.covariance_condition_numbers(opt_state),
        "cosines": insgd_optax.covariance_cosines(opt_state),
    }
