"""The optimizer of the authors' released code, which is not the paper's."""

import math
from typing import Any

import jax.numpy as jnp
import optax

from insgd_optax import _sown
from insgd_optax._alignment import mean_over_uses, power_shape
from insgd_optax._input_power import naming, scaled_by
from insgd_optax._momentum import dampened_trace
from insgd_optax._numbers import check_not_negative, is_number
from insgd_optax._released_capture import RELEASED_NAME
from insgd_optax._weight_decay import add_decayed_weights
from insgd_optax._weights import (
    Path,
    flatten,
    is_masked,
    is_placeholder,
    path_list,
    replace,
    scope_predicate,
)

_EPS = 0.01
_CAPTURE = (
    "capture with `with insgd_optax.capture_released_norms():`, inside the function"
    " that is traced, and give model.apply mutable=['intermediates']"
)


def insgd_as_released(
    learning_rate: Any,
    *,
    momentum: Any = 0.9,
    nesterov: bool = False,
    weight_decay: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""INSGD as the authors' released code computes it, for comparing with it.

    With g the gradient of a weight w,

    .. math::
        d &= g + \lambda w \\
        V &= \gamma V + d \quad (V = d \text{ at the first step}) \\
        w &\leftarrow w - \mu \frac{\kappa}{\max(\log P, 0.01)} V, \quad
        \kappa = \frac{\sqrt{1 + 10^{-6}}}{\sqrt{1 - \gamma} + 10^{-6}}

    where mu is `learning_rate`, gamma `momentum` and lambda `weight_decay`. P comes
    from `capture_released_norms`: one number an input channel of a convolution, one
    for a Dense kernel, of this batch alone. Whatever is not named "kernel" (biases,
    normalization layers, embeddings, class tokens) takes w - mu V.

    P is the power of a standardised input and therefore nearly the same at every
    step: close to height * width - 1 for a convolution, to features - 0.9 for a Dense
    layer. See docs/released_code.md before you take its results for the paper's.

    Args:
        learning_rate: mu, a number of at least 0 or an optax schedule.
        momentum: gamma, in [0, 1). kappa is 3.162269 at 0.9 and 1 at 0.
        nesterov: whether the update is d + gamma V instead of V.
        weight_decay: lambda, at least 0. Unlike `insgd`'s it is normalized too.

    Returns:
        A transformation whose `update` requires the keyword `input_norms`, and the
        parameters where weight decay is not 0. It remembers no P; `MultiSteps` does
        not know its norms. Updates leave in the gradients' shapes and dtypes.

    Raises:
        ValueError: if a number is out of its range; from `init`, if there is no
            kernel; from `update`, when it is traced, if norms are missing, do not fit
            or are those of `capture_input_norms`, with the paths.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
        >>> from insgd_optax import capture_released_norms, insgd_as_released
        >>> model = nn.Dense(1)
        >>> x = jnp.array([[3.0, 4.0], [5.0, 1.0]])
        >>> params = model.init(jax.random.key(0), x)["params"]
        >>> tx = insgd_as_released(learning_rate=1e-4, weight_decay=5e-4)
        >>> opt_state = tx.init(params)
        >>> def loss_fn(params):
        ...     with capture_released_norms(p=2):
        ...         y, sown = model.apply(
        ...             {"params": params}, x, mutable=["intermediates"]
        ...         )
        ...     return jnp.mean(y**2), sown
        >>> losses = []
        >>> for _ in range(20):
        ...     (loss, norms), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        ...     updates, opt_state = tx.update(
        ...         grads, opt_state, params, input_norms=norms
        ...     )
        ...     params = optax.apply_updates(params, updates)
        ...     losses.append(float(loss))
        >>> losses[-1] < losses[0]
        True

    Source: the authors' released PyTorch code. Algorithm 1 has no kappa, normalizes
    before weight decay and momentum, and remembers P: that is `insgd`.
    """
    check_not_negative(learning_rate=learning_rate)
    return optax.chain(
        add_decayed_weights(weight_decay),
        dampened_trace(momentum, nesterov=nesterov),
        _scale_by_released_norms(momentum),
        optax.scale_by_learning_rate(learning_rate),
    )


def _scale_by_released_norms(
    momentum: Any,
) -> optax.GradientTransformationExtraArgs:
    """Multiplies each kernel's update by kappa / max(log P, 0.01)."""
    is_kernel = scope_predicate("kernel")
    sqrt = math.sqrt if is_number(momentum) else jnp.sqrt
    kappa = math.sqrt(1 + 1e-6) / (sqrt(1 - momentum) + 1e-6)

    def init_fn(params: Any) -> optax.EmptyState:
        paths = flatten(params).paths
        if not any(map(is_kernel, paths)) and not is_placeholder(params):
            raise ValueError(
                'no parameter is named "kernel", so nothing would be normalized. The'
                f" parameters are:\n{path_list(paths)}"
            )
        return optax.EmptyState()

    def update_fn(
        updates: Any,
        state: optax.EmptyState,
        params: Any = None,
        *,
        input_norms: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, optax.EmptyState]:
        del params, extra_args
        if input_norms is None:
            raise ValueError(
                "input_norms is missing: call tx.update(grads, opt_state, params,"
                f" input_norms=sown); {_CAPTURE}."
                " insgd_optax.MultiSteps does not hand them on, nor does flax's"
                " TrainState"
            )
        sown = _sown.by_layer(input_norms, RELEASED_NAME)
        flat = flatten(updates)
        scaled = []
        absent: list[Path] = []
        for path, update in zip(flat.paths, flat.weights, strict=True):
            if is_kernel(path) and not is_masked(update):
                uses = _sown.find(sown, path)
                if uses is None:
                    absent.append(path)
                else:
                    with naming(path):
                        shape = power_shape(uses, update.shape, update.shape)
                        power = mean_over_uses(uses, update.shape, update.shape, shape)
                    # A channel that is zero has P = 0, whose log is -inf.
                    divisor = jnp.maximum(jnp.log(power), _EPS)
                    update = scaled_by(kappa / divisor, update)
            scaled.append(update)
        if absent:
            raise ValueError(_missing(absent, input_norms))
        return replace(updates, scaled), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _missing(absent: list[Path], input_norms: Any) -> str:
    """Why these kernels have no norm, as far as can be told."""
    message = f"these kernels have no {RELEASED_NAME}:\n{path_list(absent)}\n"
    if _sown.by_layer(input_norms):
        return (
            f"{message}input_norms holds what capture_input_norms sows, the paper's"
            f" norms, which are insgd's: {_CAPTURE}"
        )
    return (
        f"{message}Only Dense, DenseGeneral, Conv, ConvTranspose and recurrent cells"
        f" have one: {_CAPTURE}"
    )
