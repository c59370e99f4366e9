"""Diagnostics: the power and multiplier of scaled weights, and their covariance."""

import warnings

import jax
import optax
from jax.typing import ArrayLike

from insgd_optax._covariance_state import (
    InverseRootState,
    LayerCovariance,
    ScaleByInputCovarianceState,
    scaled_layers,
)
from insgd_optax._input_power import (
    Normalizer,
    ScaleByInputPowerState,
    divisor_function,
)
from insgd_optax._paths import flatten, path_string, states_of
from insgd_optax._whitening import condition_number


def input_powers(opt_state: optax.OptState) -> dict[str, jax.Array]:
    """P of every scaled weight, for logging.

    Args:
        opt_state: the state of `insgd`, or of any chain, mask, partition or wrapper
            that holds `scale_by_input_power`.

    Returns:
        A dict from paths, such as "Conv_0/kernel", to P, a scalar, or an array where
        stacked layers keep one P each; 0 before the first norm above 0. Units of |x|^p.

    Raises:
        ValueError: if no `scale_by_input_power` is in the state, or two of them scale
            one weight.

    Example:
        >>> import jax.numpy as jnp
        >>> from insgd_optax import input_powers, insgd
        >>> params = {"Dense_0": {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)}}
        >>> input_powers(insgd(0.1).init(params))
        {'Dense_0/kernel': Array(0., dtype=float32)}

    Source: P of Eq. 26 and 29.
    """
    return _by_weight(opt_state, "power")


def learning_rate_multipliers(
    opt_state: optax.OptState,
    *,
    normalizer: Normalizer | None = None,
    eps: ArrayLike | None = None,
) -> dict[str, jax.Array]:
    """1 / f(P) of every scaled weight: the factor on its learning rate, for logging.

    With the "log" normalizer a value of 1 / eps means that the weight sits at the
    floor: its layer's input power is near or below 1.

    Args:
        opt_state: as for `input_powers`. It holds the multipliers of the last update.
        normalizer: a normalizer to use instead of the optimizer's, with the same P; see
            `scale_by_input_power`.
        eps: the eps of that normalizer, 0.01 by default. If only `eps` is given, the
            normalizer is "log"; if neither is given, the multipliers are those of the
            last update.

    Returns:
        A dict from paths, such as "Conv_0/kernel", to multipliers, shaped like P; 1
        where P is 0.

    Raises:
        ValueError: as `input_powers`, or for a normalizer or eps out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from insgd_optax import insgd, learning_rate_multipliers
        >>> params = {"Dense_0": {"kernel": jnp.ones((2, 1))}}
        >>> tx = insgd(0.1)
        >>> norms = {"Dense_0": {"input_norm": jnp.exp(4.0)}}
        >>> _, state = tx.update(params, tx.init(params), input_norms=norms)
        >>> learning_rate_multipliers(state)
        {'Dense_0/kernel': Array(0.25, dtype=float32)}

    Source: Eq. 27 and 28.
    """
    if normalizer is None and eps is None:
        return _by_weight(opt_state, "multiplier")
    divisor = divisor_function(normalizer or "log", 0.01 if eps is None else eps)
    powers = input_powers(opt_state)
    return {name: 1 / divisor(power) for name, power in powers.items()}


def warn_at_floor(opt_state: optax.OptState, *, eps: float = 0.01) -> list[str]:
    """Warns of weights at the floor of log P, whose steps are 1 / eps times SGD's.

    If P is at most e^eps, as for a one-hot input, whose power is 1, `insgd` multiplies
    the gradient by 1 / eps = 100. The optimizer itself cannot warn: its step is
    compiled, and a callback in it would exclude it from `jax.export` and from JAX's
    compilation cache. Call this after the first few updates, outside `jax.jit`, and
    wherever metrics are logged, since a layer may die later. It waits for the updates
    and copies one number for each P from the device. Python shows a repeated warning
    once.

    Args:
        opt_state: as for `input_powers`.
        eps: that of the optimizer. The normalizer "log1p" has no floor, and never
            multiplies by more than 1.

    Returns:
        The paths of the weights, such as "Dense_0/kernel", whose multiplier, or that
        of a layer in their stack, is at least 1 / eps; empty if there is no warning.

    Raises:
        ValueError: as `input_powers`, or if the state is traced.

    Example:
        >>> import warnings
        >>> import jax.numpy as jnp
        >>> from insgd_optax import insgd, warn_at_floor
        >>> params = {"Dense_0": {"kernel": jnp.ones((2, 1))}}
        >>> tx = insgd(0.1)
        >>> norms = {"Dense_0": {"input_norm": jnp.array(1.0)}}  # one-hot
        >>> _, state = tx.update(params, tx.init(params), input_norms=norms)
        >>> with warnings.catch_warnings(action="ignore"):
        ...     warn_at_floor(state)
        ['Dense_0/kernel']
    """
    multipliers = learning_rate_multipliers(opt_state)
    if any(isinstance(value, jax.core.Tracer) for value in multipliers.values()):
        raise ValueError(
            "the state is traced, and its values are not known: call warn_at_floor"
            " outside jax.jit, on the state that the compiled step returns"
        )
    # With a tolerance for the rounding of a float32 division.
    floor = (1 - 1e-6) / eps
    names = [
        name
        for name, value in jax.device_get(multipliers).items()
        if value.max() >= floor
    ]
    if names:
        warnings.warn(
            f"INSGD multiplies the learning rate by {1 / eps:g} or more for"
            f" these weights: {', '.join(names)}. The power P of their input is near or"
            " below 1, where log P has its floor: a one-hot or zero input, a small"
            ' hidden state or an earlier layer that died. Use normalizer="log1p", which'
            " never multiplies by more than 1, or exclude these weights with scope=",
            stacklevel=2,
        )
    return names


def _by_weight(opt_state: optax.OptState, field: str) -> dict[str, jax.Array]:
    """A field of every `ScaleByInputPowerState`, by the weight's path."""
    states = states_of(opt_state, ScaleByInputPowerState)
    if not states:
        raise ValueError(
            f"the state ({type(opt_state).__name__}) holds no ScaleByInputPowerState:"
            " give the optimizer state of insgd or scale_by_input_power"
        )
    values: dict[str, jax.Array] = {}
    for state in states:
        for path, value in flatten(getattr(state, field)).present.items():
            name = path_string(path)
            if name in values:
                raise ValueError(
                    f"{name} is scaled by two scale_by_input_power transformations in"
                    " this state: look at their states one by one"
                )
            values[name] = value
    return values


def _layer_covariances(
    opt_state: optax.OptState,
) -> dict[str, tuple[LayerCovariance, bool]]:
    """The covariance of each weight, and whether it holds the root of D."""
    states = states_of(opt_state, ScaleByInputCovarianceState)
    if not states:
        raise ValueError(
            f"the state ({type(opt_state).__name__}) holds no"
            " ScaleByInputCovarianceState: give the optimizer state of lms_newton,"
            " scale_by_input_covariance or whiten_inputs"
        )
    layers: dict[str, tuple[LayerCovariance, bool]] = {}
    for state in states:
        root = isinstance(state, InverseRootState)
        for path, layer in scaled_layers(state):
            name = path_string(path)
            if name in layers:
                raise ValueError(
                    f"{name} is scaled by two scale_by_input_covariance or"
                    " whiten_inputs transformations in this state: look at their"
                    " states one by one"
                )
            layers[name] = layer, root
    return layers


def covariance_condition_numbers(opt_state: optax.OptState) -> dict[str, jax.Array]:
    """The condition number of every damped input covariance, for logging.

    The condition number is (l_1 + s) / (l_d + s), where l_1 and l_d are the largest and
    the smallest of the d eigenvalues of A, the running covariance of
    `scale_by_input_covariance`, and s is what damping and eps add. It is 1 for a white
    input, and at most about 1 + d / damping. For a weight with several matrices, it is
    the ratio of the largest to the smallest eigenvalue over all of them.

    Args:
        opt_state: the state of `lms_newton`, or of any chain, mask, partition or
            wrapper that holds `scale_by_input_covariance` or `whiten_inputs`.

    Returns:
        A scalar for each scaled weight, by path, such as "Conv_0/kernel"; 1 before the
        first capture. It is estimated by power iteration, at worst a few percent low.

    Raises:
        ValueError: if the state holds neither `scale_by_input_covariance` nor
            `whiten_inputs`, or two of them scale the same weight.

    Example:
        >>> import jax.numpy as jnp
        >>> from insgd_optax import covariance_condition_numbers, lms_newton
        >>> params = {"Dense_0": {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)}}
        >>> covariance_condition_numbers(lms_newton(0.1).init(params))
        {'Dense_0/kernel': Array(1., dtype=float32)}
    """
    layers = _layer_covariances(opt_state)
    return {
        name: condition_number(layer.factors[-1], layer.mass.ndim, layer.inverse)
        ** (2 if root else 1)
        for name, (layer, root) in layers.items()
    }


def covariance_cosines(opt_state: optax.OptState) -> dict[str, jax.Array]:
    """The cosine between each weight's update and the incoming one, for logging.

    Args:
        opt_state: as for `covariance_condition_numbers`.

    Returns:
        By path, the cosine between the last update that `scale_by_input_covariance`
        returned and the one it was given, in (0, 1]; 1 if the one it was given was
        zero. For stacked layers, it is the mean over the stack. For `whiten_inputs`, it
        is the cosine between its update and that of the inner transformation.

    Raises:
        ValueError: as `covariance_condition_numbers`.

    Example:
        >>> import jax.numpy as jnp
        >>> from insgd_optax import covariance_cosines, lms_newton
        >>> params = {"Dense_0": {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)}}
        >>> covariance_cosines(lms_newton(0.1).init(params))
        {'Dense_0/kernel': Array(1., dtype=float32)}
    """
    layers = _layer_covariances(opt_state)
    return {name: layer.cosine.mean() for name, (layer, _) in layers.items()}
