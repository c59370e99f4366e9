"""The rule: divide each layer's gradient by a function of its input's power."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from insgd_optax._accumulation_warning import warn_of_optax_multi_steps
from insgd_optax._compat import is_placeholder
from insgd_optax._explicit_axes import replicated_like, sharded_like
from insgd_optax._matching import (
    NAME,
    by_layer,
    check_not_shared,
    matches,
)
from insgd_optax._missing import (
    absent_in,
    absent_in_like,
    check_missing,
    likely_causes,
    missing_argument,
)
from insgd_optax._norms import statistic_dtype, wider
from insgd_optax._numbers import check_fraction, is_number
from insgd_optax._paths import (
    FlatWeights,
    Path,
    Scope,
    flatten,
    is_masked,
    path_list,
    replace,
    scope_predicate,
)

Normalizer = str | Callable[[jax.Array], jax.Array]


class ScaleByInputPowerState(NamedTuple):
    """State of `scale_by_input_power`.

    Attributes:
        count: the number of updates: shape (), int32.
        power: a tree like the parameters: P where a weight is scaled, in float32
            (float64 for float64 weights); `optax.MaskedNode()` elsewhere. The shape is
            () or, if `input_norms_like` keeps several P, that of the weight with size 1
            along every axis along which P is the same, such as (4, 1, 1) for four
            stacked Dense kernels.
        multiplier: a tree like `power`: 1 / f(P), the factor on the last gradient; 1
            before the first.
    """

    # `count` shadows `tuple.count`, hence the ignore.
    count: jax.Array  # type: ignore[assignment]
    power: Any
    multiplier: Any


_CAUSES = likely_causes(
    NAME,
    """
  - scope="layer" also scales the scale and bias of normalization layers: capture with
    norm_layers=True
  - scope="layer" also scales a bias or scale that a module keeps outside any layer:
    exclude it with scope=lambda path: path[-1] in ("kernel", "bias", "scale") and
    path[:-1] != ("path", "of", "the", "module")
  - the norms are those of capture_released_norms, which only insgd_as_released uses""",
)


def scale_by_input_power(
    decay: ArrayLike = 0.9,
    *,
    normalizer: Normalizer = "log",
    eps: ArrayLike = 0.01,
    scope: Scope = "kernel",
    missing: str = "error",
    input_norms_like: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Divides each layer's gradient by a function of its input's running power.

    With x_t the input of the layer at step t and g_t the gradient of its kernel,

    .. math::
        P_t &= \beta P_{t-1} + (1 - \beta) \|x_t\|_p^p, \quad P_1 = \|x_1\|_p^p \\
        g_t &\leftarrow g_t / f(P_t), \quad f(P) = \max(\log P, \epsilon)

    where beta is `decay` and epsilon is `eps`. The norms are passed to `update` as the
    keyword `input_norms`; see `capture_input_norms`, which also sets p. P = 0 means
    that no norm above 0 has been seen yet; the divisor is then 1. A norm that is inf or
    nan leaves P as it was, so that one bad batch does not make every later P inf or
    nan. A layer whose norms all overflow, as they may with a large p, therefore keeps
    P = 0 and is not scaled.

    Args:
        decay: beta, how much of P is kept from step to step, in [0, 1). 0 makes P the
            power of the current batch.
        normalizer: f: "log" is max(log P, eps); "power" is eps + P, as in NLMS; "log1p"
            is 1 + log(1 + P), never below 1; or a function from P to the divisor,
            elementwise.
        eps: the floor of "log", where the step is 1 / eps times SGD's, and the
            regularizer of "power". Unused by the others. Float16 gradients above
            65504 * eps overflow at the floor.
        scope: which weights are scaled: "kernel", every parameter of that name;
            "layer", also bias and scale, by the power of their own layer (capture
            with `norm_layers=True`); or a function from a parameter's path, a tuple
            such as ("Dense_0", "kernel"), to True or False. All others pass through.
        missing: what happens to a scaled weight without a norm in this pass: "error",
            or "keep" its P and scale by it.
        input_norms_like: what `input_norm_shapes` returns; then layers stacked by
            `nn.scan` or `nn.vmap` keep one P each. Without it a weight has one P, the
            mean over every stacked axis.

    Returns:
        A transformation whose `update` requires the keyword `input_norms`, the
        unmodified tree of mutated variables from the forward pass whose gradients are
        passed. Other sown values in it are ignored. Updates have the gradients' shapes
        and dtypes. Its state is a `ScaleByInputPowerState`.

    Raises:
        ValueError: on construction, if decay, eps, normalizer, scope or missing is out
            of range; from `init`, if no parameter is in scope; from `update`, if norms
            are missing or do not fit. The message names the weights.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from insgd_optax import scale_by_input_power
        >>> params = {"Dense_0": {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)}}
        >>> tx = scale_by_input_power()
        >>> state = tx.init(params)
        >>> norms = {"Dense_0": {"input_norm": jnp.exp(4.0)}}
        >>> grads = params
        >>> updates, state = tx.update(grads, state, params, input_norms=norms)
        >>> updates["Dense_0"]["kernel"].ravel(), updates["Dense_0"]["bias"]
        (Array([0.25, 0.25], dtype=float32), Array([1.], dtype=float32))

    Source: Eq. 26-29 and Algorithm 1; `normalizer="power"` is Eq. 25. Algorithm 1
    leaves P undefined at decay 0; "log1p", `scope` and the guard against norms that are
    not finite are specific to this library.
    """
    check_fraction(decay=decay)
    check_missing(missing)
    divisor = divisor_function(normalizer, eps)
    in_scope = scope_predicate(scope)
    like = None if input_norms_like is None else by_layer(input_norms_like)

    def init_fn(params: optax.Params) -> ScaleByInputPowerState:
        warn_of_optax_multi_steps("input norms")
        count = jnp.zeros([], jnp.int32)
        if is_placeholder(params):
            # P does not mirror the parameters: it is replicated even if one is sharded.
            return ScaleByInputPowerState(count, jnp.zeros([]), jnp.ones([]))
        flat = flatten(params)
        scaled = {path: w for path, w in flat.present.items() if in_scope(path)}
        if not scaled:
            raise ValueError(nothing_in_scope(scope, "normalized", flat))
        found = {} if like is None else matches(like, flat.present)
        absent = [path for path in scaled if path not in found]
        if like is not None and absent and missing == "error":
            raise ValueError(absent_in_like(input_norms_like, absent, NAME, _CAUSES))

        def initial(path: Path) -> Any:
            if path not in scaled:
                return optax.MaskedNode()
            shape = found[path].power_shape() if path in found else ()
            return jnp.zeros(shape, statistic_dtype(scaled[path].dtype))

        tree = jax.tree.unflatten(flat.treedef, map(initial, flat.paths))
        tree = replicated_like(tree, params)
        return ScaleByInputPowerState(count, tree, jax.tree.map(jnp.ones_like, tree))

    def update_fn(
        updates: optax.Updates,
        state: ScaleByInputPowerState,
        params: optax.Params | None = None,
        *,
        input_norms: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByInputPowerState]:
        del params
        if input_norms is None:
            raise ValueError(missing_argument(NAME, extra_args))
        sown = by_layer(input_norms)
        grads = flatten(updates).present
        found = matches(sown, grads)
        powers = flatten(state.power)
        multipliers = flatten(state.multiplier).weights
        new_powers, new_multipliers = [], []
        scaled: list[Path] = []
        for path, power, multiplier in zip(
            powers.paths, powers.weights, multipliers, strict=True
        ):
            if not is_masked(power) and path in grads:
                scaled.append(path)
                if path in found:
                    norm = found[path].mean(power.shape).astype(power.dtype)
                    # A layer stacked along a sharded axis sows sharded norms.
                    norm = sharded_like(norm, power)
                    # While inputs are 0, P decays, but not to 0: 0 means "none yet".
                    least = jnp.where(power > 0, jnp.finfo(power.dtype).tiny, 0)
                    power = jnp.maximum(next_power(power, norm, decay), least)
                multiplier = 1 / divisor(power)
                grads[path] = scaled_by(multiplier, grads[path])
            new_powers.append(power)
            new_multipliers.append(multiplier)
        absent = [path for path in scaled if path not in found]
        if absent and missing == "error":
            raise ValueError(absent_in(input_norms, absent, sown, NAME, _CAUSES))
        check_not_shared(sown, scaled)
        return (
            replace(updates, grads.values()),
            ScaleByInputPowerState(
                count=optax.safe_increment(state.count),
                power=jax.tree.unflatten(powers.treedef, new_powers),
                multiplier=jax.tree.unflatten(powers.treedef, new_multipliers),
            ),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def nothing_in_scope(scope: Scope, what: str, flat: FlatWeights) -> str:
    """The error message for a scope that matches no parameter."""
    seen = list(flat.present)
    message = (
        f"no parameter is in scope={scope!r}, so nothing would be {what}. The"
        f" parameters are:\n{path_list(seen) or '  none'}\n"
    )
    if len(seen) < len(flat.paths):
        masked = len(flat.paths) - len(seen)
        others = "1 other is" if masked == 1 else f"{masked} others are"
        return (
            f"{message}{others} masked away. A group of"
            " optax.partition or optax.masked without a weight in scope, for example"
            " biases and scales without weight decay, needs no input statistics: give"
            " it optax.sgd with the same learning rate and momentum. If only some"
            " weights should decay, one optimizer with a weight_decay_mask is enough"
        )
    if seen == [()]:
        return (
            f"{message}This is one array without a name: optax.flatten, for example,"
            " joins a tree into one array and drops the names. Leave it out, or flatten"
            " only the transformations that do not need the names"
        )
    return f"{message}Select the weights to scale with scope=, or use optax.sgd"


def next_power(power: jax.Array, norm: jax.Array, decay: ArrayLike) -> jax.Array:
    """The running mean of Eq. 26 and 29.

    It starts at the first norm above 0 and skips norms that are not finite.
    """
    average = decay * power + (1 - decay) * norm
    average = jnp.where(power > 0, average, norm)
    return jnp.where(jnp.isfinite(norm), average, power).astype(power.dtype)


def scaled_by(multiplier: jax.Array, grad: jax.Array) -> jax.Array:
    """multiplier * grad, computed in the wider dtype, returned in the gradient's."""
    dtype = wider(grad.dtype, multiplier.dtype)
    if jnp.iscomplexobj(grad):
        dtype = np.promote_types(dtype, np.complex64)
    return (grad.astype(dtype) * multiplier.astype(dtype)).astype(grad.dtype)


def divisor_function(
    normalizer: Normalizer, eps: ArrayLike
) -> Callable[[Any], jax.Array]:
    """Returns P -> f(P), with f = 1 where P is 0, that is, before the first norm.

    Raises:
        ValueError: if the normalizer is unknown or eps is not positive.
    """
    if is_number(eps) and not eps > 0:
        raise ValueError(f"eps={eps} must be greater than 0")
    functions: dict[str, Callable[[jax.Array], jax.Array]] = {
        "log": lambda power: jnp.maximum(jnp.log(power), eps),
        "power": lambda power: power + eps,
        "log1p": lambda power: 1 + jnp.log1p(power),
    }
    if callable(normalizer):
        function = normalizer
    elif not isinstance(normalizer, str):
        raise TypeError(
            f"normalizer is a {type(normalizer).__name__}: give a name or a function"
            " from P to the divisor; optax.inject_hyperparams treats callables as"
            ' schedules: pass it static_args=("normalizer",)'
        )
    elif normalizer in functions:
        function = functions[normalizer]
    else:
        raise ValueError(
            f"normalizer={normalizer!r} is not known: give one of {sorted(functions)},"
            " or a function from P to the divisor"
        )

    def divisor(power: jax.Array) -> jax.Array:
        known = power > 0
        # A callable need not be defined at 0.
        value = function(jnp.where(known, power, jnp.ones_like(power)))
        return jnp.where(known, value, jnp.ones_like(power)).astype(power.dtype)

    return divisor
