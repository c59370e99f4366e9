"""The transformation that `scale_by_input_covariance` and `whiten_inputs` build on."""

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from insgd_optax import _matching
from insgd_optax._accumulation_warning import warn_of_optax_multi_steps
from insgd_optax._compat import is_placeholder
from insgd_optax._covariance import MAX_DIM, InputCovariance
from insgd_optax._covariance_capture import covariances_by_layer
from insgd_optax._covariance_form import assumed_form
from insgd_optax._covariance_state import (
    InverseRootState,
    LayerCovariance,
    ScaleByInputCovarianceState,
    flat_layers,
    form_of_sown,
    form_of_state,
    initial_layer,
    next_layers,
    scaled_layers,
    total,
)
from insgd_optax._explicit_axes import replicated_like, with_auto_axes
from insgd_optax._input_power import nothing_in_scope
from insgd_optax._missing import (
    absent_in,
    absent_in_like,
    check_missing,
    likely_causes,
    missing_argument,
)
from insgd_optax._norms import statistic_dtype
from insgd_optax._numbers import (
    check_fraction,
    check_not_negative,
    check_scalar,
    check_whole_number,
    is_number,
)
from insgd_optax._paths import (
    Path,
    Scope,
    flatten,
    path_string,
    replace,
    scope_predicate,
)
from insgd_optax._redirection import redirected
from insgd_optax._update_if import update_if

_NAME = _matching.COVARIANCE_NAME
_CAUSES = likely_causes(_NAME)
_LIKE = (
    "tell the optimizer what the model sows: inside the capture, compute shapes ="
    " insgd_optax.input_covariance_shapes(model, rngs, x), and give the optimizer"
    " input_covariances_like=shapes. This is needed where a kernel's shape does not"
    " tell which of its axes are inputs: attention without biases, DenseGeneral with"
    " batch_dims or with several output axes and no bias, grouped convolutions,"
    " ConvLocal, ConvTranspose with transpose_kernel, Einsum, layers stacked by"
    ' nn.scan or nn.vmap; and for conv_covariance="kronecker"'
)
_MISMATCH = (
    f"If max_dim is given, give the capture and the optimizer the same; else {_LIKE}"
)


def covariance_link(
    decay: ArrayLike,
    *,
    damping: ArrayLike,
    eps: ArrayLike,
    preserve_norm: bool,
    max_dim: int | None,
    scope: Scope,
    missing: str,
    input_covariances_like: Any,
    initial_covariance: float | None = None,
    root: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by D or, with `root`, by its square root.

    See `scale_by_input_covariance` for D and the arguments.
    """
    state_type = InverseRootState if root else ScaleByInputCovarianceState
    check_scalar(decay=decay, damping=damping, eps=eps)
    if initial_covariance is not None:
        check_scalar(initial_covariance=initial_covariance)
    check_fraction(decay=decay)
    check_not_negative(damping=damping, eps=eps)
    if is_number(damping) and damping == float("inf"):
        raise ValueError(
            "damping=inf leaves nothing of the covariance: give a finite number"
        )
    check_missing(missing)
    if max_dim is None:
        # The default is None, since inject_hyperparams would make a number an array.
        max_dim = MAX_DIM
    check_whole_number(
        "max_dim",
        max_dim,
        least=2,
        hint=" (with optax.inject_hyperparams, name it in static_args)",
    )
    if is_number(initial_covariance) and not initial_covariance > 0:
        raise ValueError(f"initial_covariance={initial_covariance} must be positive")
    if scope == "layer":
        raise ValueError(
            'scope="layer" is only available in scale_by_input_power: covariances do'
            " not apply to biases and normalization layers. Give a function from a"
            " parameter's path, such as ('Dense_0', 'kernel'), to True or False"
        )
    in_scope = scope_predicate(scope)
    like = (
        None
        if input_covariances_like is None
        else covariances_by_layer(input_covariances_like)
    )

    def init_fn(params: optax.Params) -> ScaleByInputCovarianceState:
        warn_of_optax_multi_steps("input covariances")
        # Two arrays, not one twice: each may be donated once.
        count, failures = (jnp.zeros([], jnp.int32) for _ in range(2))
        if is_placeholder(params):
            # The matrices do not mirror the parameters: return an ordinary array in
            # their place, not the placeholder.
            return state_type(count, failures, jnp.zeros([]))
        flat = flatten(params)
        shapes = {path: weight.shape for path, weight in flat.present.items()}
        layers: dict[Path, LayerCovariance] = {}
        no_like: list[Path] = []
        for path, weight in flat.present.items():
            # A kernel without inputs or outputs has nothing to scale.
            if not in_scope(path) or not weight.size:
                continue
            _check_real(path, weight)
            bias = shapes.get((*path[:-1], "bias"))
            form = assumed_form(weight.shape, bias, max_dim)
            if like is not None:
                sown = _matching.find(like, path)
                if sown is None:
                    no_like.append(path)
                else:
                    with naming(path):
                        form = form_of_sown(sown[0], weight.shape)
            dtype = statistic_dtype(weight.dtype)
            layers[path] = initial_layer(form, dtype, initial_covariance)
        if not layers:
            raise ValueError(nothing_in_scope(scope, "scaled", flat))
        if no_like and missing == "error":
            message = absent_in_like(input_covariances_like, no_like, _NAME, _CAUSES)
            raise ValueError(message)
        nodes = [layers.get(path, optax.MaskedNode()) for path in flat.paths]
        state = state_type(count, failures, jax.tree.unflatten(flat.treedef, nodes))
        return replicated_like(state, params)

    def update_fn(
        updates: optax.Updates,
        state: ScaleByInputCovarianceState,
        params: optax.Params | None = None,
        *,
        input_covariances: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByInputCovarianceState]:
        del params
        if input_covariances is None:
            raise ValueError(missing_argument(_NAME, extra_args))
        sown = covariances_by_layer(input_covariances)
        return with_auto_axes(
            functools.partial(updated, input_covariances),
            updates,
            state,
            sown,
            (decay, damping, eps),
            like=(updates, state),
        )

    def updated(
        given: Any,
        updates: optax.Updates,
        state: ScaleByInputCovarianceState,
        sown: dict[Path, list[InputCovariance]],
        settings: tuple[ArrayLike, ArrayLike, ArrayLike],
    ) -> tuple[optax.Updates, ScaleByInputCovarianceState]:
        grads = flatten(updates).present
        scaled = _scaled(state, grads)
        forms, totals, absent = {}, {}, []
        for path, layer in scaled.items():
            with naming(path):
                forms[path] = form_of_state(layer, grads[path].shape)
                found = _matching.find(sown, path)
                if found is None:
                    absent.append(path)
                else:
                    batch = total(found, forms[path], layer.mass.dtype)
                    # Without axes of length 1, for the reason given in `measured`.
                    factors = tuple(map(jnp.squeeze, batch.factors))
                    totals[path] = batch._replace(factors=factors)
        if absent and missing == "error":
            raise ValueError(absent_in(given, absent, sown, _NAME, _CAUSES))
        _matching.check_not_shared(sown, totals, _NAME)

        old = {path: scaled[path] for path in totals}
        if old:
            any_rows = jnp.stack([jnp.any(t.count > 0) for t in totals.values()]).any()
            any_rows = _after(any_rows, [grads[path] for path in totals])
            new, failed = update_if(
                any_rows,
                lambda value: next_layers(value[0], totals, forms, settings, root),
                (old, jnp.zeros([], jnp.int32)),
            )
            scaled |= new
        else:
            failed = jnp.zeros([], jnp.int32)
        state = state_type(
            count=optax.safe_increment(state.count),
            failures=state.failures + failed,
            layers=_with(state.layers, scaled),
        )
        return _multiplied(updates, state, preserve_norm)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def multiply(
    updates: optax.Updates, state: ScaleByInputCovarianceState, preserve_norm: bool
) -> tuple[optax.Updates, ScaleByInputCovarianceState]:
    """Multiplies updates by the matrices in the state, and records the cosines."""
    function = functools.partial(_multiplied, preserve_norm=preserve_norm)
    return with_auto_axes(function, updates, state, like=(updates, state))


def _multiplied(
    updates: optax.Updates, state: ScaleByInputCovarianceState, preserve_norm: bool
) -> tuple[optax.Updates, ScaleByInputCovarianceState]:
    grads = flatten(updates).present
    scaled = _scaled(state, grads)
    redirected_grads, scaled = redirected(
        {path: grads[path] for path in scaled}, scaled, preserve_norm
    )
    return (
        replace(updates, (grads | redirected_grads).values()),
        state._replace(layers=_with(state.layers, scaled)),
    )


def _scaled(
    state: ScaleByInputCovarianceState, grads: dict[Path, jax.Array]
) -> dict[Path, LayerCovariance]:
    """The covariance of each scaled weight that has a gradient."""
    return {path: layer for path, layer in scaled_layers(state) if path in grads}


def _with(layers: Any, new: dict[Path, LayerCovariance]) -> Any:
    """A state's `layers` with those of some weights replaced."""
    paths, nodes, treedef = flat_layers(layers)
    nodes = [new.get(path, node) for path, node in zip(paths, nodes, strict=True)]
    return jax.tree.unflatten(treedef, nodes)


def naming(path: Path) -> contextlib.AbstractContextManager[None]:
    """Adds the weight's path to the message of a mismatch."""
    return _matching.naming(path, _NAME, _MISMATCH)


def _after(flag: jax.Array, arrays: list[jax.Array]) -> jax.Array:
    """The flag, which on a CPU is computed after the arrays.

    There, XLA schedules what depends on the forward pass alone in the middle of the
    backward pass, where memory is scarcest, and drops `optimization_barrier` before it
    does so. So the flag is joined with a condition on the arrays that is always true
    but that XLA cannot fold: the bits of a float, shifted right by 31 places as a
    signed integer, are 0 or -1.
    """

    def depending(flag: jax.Array, *arrays: jax.Array) -> jax.Array:
        firsts = [x[(0,) * x.ndim].astype(jnp.float32) for x in arrays]
        bits = jax.lax.bitcast_convert_type(jnp.stack(firsts), jnp.int32)
        return flag & ((bits >> 31) <= 0).all()

    return jax.lax.platform_dependent(
        flag, *arrays, cpu=depending, default=lambda flag, *_: flag
    )


def _check_real(path: Path, weight: jax.Array) -> None:
    if jnp.issubdtype(weight.dtype, jnp.complexfloating):
        raise ValueError(
            f"{path_string(path)} is {weight.dtype}: scale_by_input_covariance is for"
            " real weights. Exclude it with scope=, a function from paths to True or"
            " False"
        )
