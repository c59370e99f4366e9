"""Options of optimizers, and the interface between optimizers and train steps."""

import contextlib
import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import optax

# A number, or a function from the step to the learning rate.
LearningRate: TypeAlias = float | optax.Schedule
# From the step to the context in which layers sow statistics of their inputs.
Capture = Callable[[Any], contextlib.AbstractContextManager[None]]
ExtraMetric = Callable[[Any], jax.Array]
# From a capture to the shapes that the network sows within it.
SownShapes = Callable[[contextlib.AbstractContextManager[None]], Any]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Options of the optimizers other than the learning rate."""

    momentum: float = 0.9
    """Momentum of SGD, LARS, LSALR, Momo, lms-newton and INSGD, in [0, 1)."""
    dampening: float = 0.0
    """Dampening (SGD, INSGD, lms-newton); equal to --momentum in the paper's Alg. 1."""
    nesterov: bool = False
    """Use Nesterov momentum (SGD, LARS, LSALR, INSGD, lms-newton)."""
    weight_decay: float = 5e-4
    """Weight decay: l2, or Optax's in AdamW, Muon, Momo, Prodigy and D-Adaptation."""
    scope: Literal["kernel", "layer"] = "kernel"
    """Parameters INSGD scales: kernels, or also biases and normalization layers."""
    normalizer: Literal["log", "power", "log1p"] = "log"
    """INSGD's divisor: max(log P, eps), eps + P, or 1 + log(1 + P)."""
    eps: float = 0.01
    """Lower bound of log P in INSGD; --normalizer power adds it to P. Above 0."""
    power_decay: float = 0.9
    """Decay (beta) of INSGD's running input power P, in [0, 1)."""
    conv_input: Literal["feature_map", "patch"] = "feature_map"
    """Input of a convolution for INSGD: its whole feature map, or each patch of it."""

    clip_norm: float | None = None
    """Clip the gradient to this global norm. Default: no clipping."""
    polyak_factor: float | None = None
    """Cap on the rate, in Polyak steps (SGD, INSGD, lms-newton). Default: none."""

    damping: float = 1.0
    """Damping, in mean eigenvalues of the covariance (lms-newton, +cov, +whitened)."""
    covariance_every: int = 10
    """Steps between input covariances (lms-newton, +cov, +whitened)."""
    covariance_decay: float = 0.95
    """Decay of the input covariance (lms-newton, +cov, +whitened), in [0, 1)."""
    covariance_max_rows: int = 2048
    """Maximum inputs per layer and covariance (lms-newton, +cov, +whitened)."""
    covariance_max_dim: int = 768
    """Maximum dimension of an input covariance (lms-newton, +cov, +whitened)."""
    conv_covariance: Literal["patch", "kronecker"] = "patch"
    """Covariance of patches (lms-newton, +cov, +whitened): full or factored."""


class Optimizer(NamedTuple):
    """An optimizer for the train step, with its diagnostics.

    Attributes:
        tx: the transformation, which accepts `input_norms`, `input_covariances` and
            `value`.
        capture: maps the step to a context in which the layers sow statistics of their
            inputs, such as `capture_input_norms()`; None for no statistics.
        capture_every: period of the capture; 1 without one. `capture(step)` may depend
            on the step only through whether it is divisible by this number. Optimizers
            of the user's own have 1, whatever they return: each step evaluates their
            capture.
        extra_metrics: scalar functions of the optimizer state by name, which are
            averaged over the steps of an epoch.
        diagnostics: maps the optimizer state to arrays by name and weight, whose means
            are metrics of an epoch; None for no diagnostics. INSGD's are "multipliers"
            and "powers".
    """

    tx: optax.GradientTransformationExtraArgs
    capture: Capture | None = None
    capture_every: int = 1
    extra_metrics: Mapping[str, ExtraMetric] = types.MappingProxyType({})
    diagnostics: Callable[[Any], dict[str, dict[str, jax.Array]]] | None = None


# Makes an optimizer from its learning rate, its options and, if known, sown shapes.
Make = Callable[[LearningRate, OptimizerConfig, SownShapes | None], Optimizer]
