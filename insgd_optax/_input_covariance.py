"""The rule: multiply each layer's gradient by the inverse of its input's covariance."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from insgd_optax import _matching
from insgd_optax._compat import is_placeholder
from insgd_optax._covariance import MAX_DIM
from insgd_optax._covariance_capture import covariances_by_layer
from insgd_optax._covariance_form import assumed_form
from insgd_optax._covariance_state import (
    LayerCovariance,
    ScaleByInputCovarianceState,
    flat_layers,
    form_of_sown,
    form_of_state,
    initial_layer,
    next_layer,
    redirected,
    total,
)
from insgd_optax._input_power import nothing_in_scope
from insgd_optax._last_norms import warn_of_optax_multi_steps
from insgd_optax._norms import statistic_dtype
from insgd_optax._numbers import (
    check_fraction,
    check_not_negative,
    check_whole_number,
    is_number,
)
from insgd_optax._paths import (
    Path,
    Scope,
    flatten,
    is_masked,
    path_list,
    path_string,
    replace,
    scope_predicate,
)

_CAUSES = _matching.likely_causes(_matching.COVARIANCE_NAME)
_LIKE = (
    "tell the optimizer what the model sows: inside the capture, shapes ="
    " insgd_optax.input_covariance_shapes(model, rngs, x), then give it"
    " input_covariances_like=shapes. This is needed where a kernel's shape does not"
    " tell which of its axes are inputs: attention without biases, DenseGeneral with"
    " batch_dims, grouped convolutions, ConvLocal, ConvTranspose with transpose_kernel,"
    " Einsum, layers stacked by nn.scan or nn.vmap"
)
_MISMATCH = (
    f"If max_dim is given, give the capture and the optimizer the same; else {_LIKE}"
)


def scale_by_input_covariance(
    decay: ArrayLike = 0.95,
    *,
    damping: ArrayLike = 1.0,
    eps: ArrayLike = 1e-8,
    preserve_norm: bool = True,
    max_dim: int | None = None,
    scope: Scope = "kernel",
    missing: str = "error",
    input_covariances_like: Any = None,
    initial_covariance: float | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies each layer's gradient by the inverse covariance of its input.

    For a layer with kernel W of shape (d, m), whose n input vectors in this pass are
    the rows of X_t, and whose incoming update is G_t,

    .. math::
        A_t &= \beta A_{t-1} + (1 - \beta) X_t^T X_t / n \\
        D_t &= \Bigl(\hat A_t + \bigl(\delta \operatorname{tr}(\hat A_t) / d
            + \epsilon\bigr) I\Bigr)^{-1}, \quad \hat A_t = A_t / (1 - \beta^t) \\
        U_t &= D_t G_t \\
        U_t &\leftarrow U_t \, \|G_t\| / \|U_t\| \quad \text{with } preserve\_norm

    where beta is `decay`, delta `damping` and epsilon `eps`. The covariance is not
    centered. Each index of a stacked, group or batch axis has its own matrix and trace;
    the blocks of one input vector share a trace. The covariance is passed to `update`
    as the keyword `input_covariances`: see `capture_input_covariances`, whose `when`
    sets how often it is measured. A pass that did not capture changes neither A nor D,
    and t counts captures.

    Place it directly after the transformation whose updates it should precondition:
    first in a chain for SGD, after `scale_by_input_power()` for INSGD, after
    `optax.scale_by_adam()` for Adam, always before weight decay and momentum. With
    `preserve_norm` only the directions of the updates change, so that a learning rate
    that suited them is a good first choice.

    Args:
        decay: beta, in [0, 1). 0 takes the covariance of the last capture.
        damping: delta, at least 0 and finite, in units of the mean eigenvalue of A.
            Large values leave the update nearly unchanged.
        eps: epsilon, at least 0, in units of the input squared.
        preserve_norm: whether each weight's update keeps its Frobenius norm. Without
            it the update has Newton's scale, in units of 1 / x^2, and the learning rate
            and the damping need to be tuned anew.
        max_dim: the largest matrix, at least 2; None is 768, the default of
            `capture_input_covariances`. The covariance of a longer input vector is
            approximated: by a Kronecker product of kernel positions and channels if it
            lies along three or more axes of the kernel, as in a two-dimensional
            convolution; else by diagonal blocks, of at least two entries along an axis.
            Capture with the same or a larger `max_dim`. Unused with
            `input_covariances_like`, which determines the layout.
        scope: which weights are scaled: "kernel", every parameter of that name, or a
            function from a parameter's path, a tuple such as ("Dense_0", "kernel"), to
            True or False. All others pass through.
        missing: what happens to a scaled weight without a covariance in this pass:
            "error", or "keep" its D.
        input_covariances_like: what `input_covariance_shapes` returns. It is needed
            where the shape of a kernel does not tell which of its axes are inputs:
            attention without biases, `nn.DenseGeneral` with `batch_dims`, grouped
            convolutions, `nn.ConvLocal`, `nn.ConvTranspose` with `transpose_kernel`,
            `nn.Einsum`, layers stacked by `nn.scan` or `nn.vmap`; and for
            `conv_covariance="kronecker"`.
        initial_covariance: a number a: A_0 = a I, without correction for the start, as
            in RLS. None starts from the first capture.

    Returns:
        A transformation whose `update` requires the keyword `input_covariances`, the
        mutated variables, or the "intermediates" collection, of the pass that gave the
        gradients. Updates have the gradients' shapes and dtypes. If a factorization
        fails (A singular, no damping), the previous D, at first the identity, is kept,
        and `failures` in the state is incremented. Its state is a
        `ScaleByInputCovarianceState`. `update` can be differentiated with respect to
        the updates, but not to decay, damping and eps.

    Raises:
        ValueError: on construction, if a number or option is out of range; from
            `init`, if no parameter is in scope; from `update`, when it is traced, if
            covariances are missing or do not fit, with the paths.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> from insgd_optax import (
        ...     capture_input_covariances, scale_by_input_covariance)
        >>> model, x = nn.Dense(1), jnp.array([[2.0, 1.0], [-2.0, 1.0]])
        >>> params = model.init(jax.random.key(0), x)["params"]
        >>> with capture_input_covariances():
        ...     _, sown = model.apply(
        ...         {"params": params}, x, mutable=["intermediates"]
        ...     )
        >>> tx = scale_by_input_covariance(damping=0.0, preserve_norm=False)
        >>> grads = {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)}
        >>> updates, _ = tx.update(grads, tx.init(params), input_covariances=sown)
        >>> print(updates["kernel"].ravel())  # 1 / (8 / 2), 1 / (2 / 2)
        [0.25 1.  ]

    Source: LMS-Newton (Widrow and Stearns, 1985) for every layer of a network; with
    another damping, FOOF (Benzing, 2022, arXiv:2201.12250). With one sample, decay 0,
    no damping and `preserve_norm=False`, it is Eq. 25 of the paper, NLMS.
    `preserve_norm` is specific to this library.
    """
    check_fraction(decay=decay)
    check_not_negative(damping=damping, eps=eps)
    if is_number(damping) and damping == float("inf"):
        raise ValueError("damping=inf leaves nothing of the covariance: give a number")
    if missing not in ("error", "keep"):
        raise ValueError(f'missing={missing!r} is not known: give "error" or "keep"')
    if max_dim is None:  # inject_hyperparams would make an array of a number.
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
            # The matrices do not mirror them: they are replicated.
            return ScaleByInputCovarianceState(count, failures, jnp.zeros([]))
        flat = flatten(params)
        shapes = {
            path: weight.shape
            for path, weight in zip(flat.paths, flat.weights, strict=True)
            if not is_masked(weight)
        }
        layers: list[Any] = [optax.MaskedNode()] * len(flat.paths)
        no_like: list[Path] = []
        for i, (path, weight) in enumerate(zip(flat.paths, flat.weights, strict=True)):
            if is_masked(weight) or not in_scope(path):
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
            layers[i] = initial_layer(form, dtype, initial_covariance)
        if not any(isinstance(layer, LayerCovariance) for layer in layers):
            raise ValueError(nothing_in_scope(scope, "scaled", flat))
        if no_like and missing == "error":
            raise ValueError(
                "input_covariances_like has no covariance for these scaled weights:\n"
                f"{path_list(no_like)}\n{_CAUSES}"
            )
        return ScaleByInputCovarianceState(
            count, failures, jax.tree.unflatten(flat.treedef, layers)
        )

    def update_fn(
        updates: optax.Updates,
        state: ScaleByInputCovarianceState,
        params: optax.Params | None = None,
        *,
        input_covariances: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByInputCovarianceState]:
        del params, extra_args
        if input_covariances is None:
            raise ValueError(_matching.missing_argument(_matching.COVARIANCE_NAME))
        sown = covariances_by_layer(input_covariances)
        flat = flatten(updates)
        grads = dict(zip(flat.paths, flat.weights, strict=True))
        paths, layers, treedef = flat_layers(state.layers)
        scaled = {
            path: layer
            for path, layer in zip(paths, layers, strict=True)
            if path in grads and not is_masked(layer) and not is_masked(grads[path])
        }
        forms, totals, absent = {}, {}, []
        for path, layer in scaled.items():
            with naming(path):
                forms[path] = form_of_state(layer, grads[path].shape)
                found = _matching.find(sown, path)
                if found is None:
                    absent.append(path)
                else:
                    batch = total(found, forms[path], layer.mass.dtype)
                    # Without axes of length 1: XLA copies an array whose layout
                    # differs in these alone.
                    factors = tuple(map(jnp.squeeze, batch.factors))
                    totals[path] = batch._replace(factors=factors)
        if absent and missing == "error":
            raise ValueError(
                f"these scaled weights have no input covariance:\n{path_list(absent)}\n"
                f"The covariances are of these layers:\n"
                f"{path_list(list(sown)) or '  none'}\n{_CAUSES}"
            )

        _matching.check_not_shared(sown, totals, _matching.COVARIANCE_NAME)

        def refreshed(
            old: dict[Path, LayerCovariance],
        ) -> tuple[dict[Path, LayerCovariance], jax.Array]:
            new, failures = {}, jnp.zeros([], jnp.int32)
            for path, layer in old.items():
                new[path], failed = next_layer(
                    layer, totals[path], forms[path], decay, damping, eps
                )
                failures += failed
            return new, failures

        old = {path: scaled[path] for path in totals}
        if old:
            any_rows = jnp.stack([jnp.any(t.count > 0) for t in totals.values()]).any()
            any_rows = _after(any_rows, [grads[path] for path in totals])
            # A loop of no or one round: unlike `lax.cond` it leaves the matrices where
            # they are, and does not copy them in steps that bring nothing.
            _, (new, failed) = jax.lax.while_loop(
                lambda carry: carry[0],
                lambda carry: (jnp.zeros_like(any_rows), refreshed(carry[1][0])),
                (any_rows, (old, jnp.zeros([], jnp.int32))),
            )
            scaled |= new
        else:
            failed = jnp.zeros([], jnp.int32)
        for path, layer in scaled.items():
            grads[path], scaled[path] = redirected(
                grads[path], layer, forms[path], preserve_norm
            )
        layers = [scaled.get(p, layer) for p, layer in zip(paths, layers, strict=True)]
        return (
            replace(updates, [grads[path] for path in flat.paths]),
            ScaleByInputCovarianceState(
                count=optax.safe_increment(state.count),
                failures=state.failures + failed,
                layers=jax.tree.unflatten(treedef, layers),
            ),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def naming(path: Path) -> contextlib.AbstractContextManager[None]:
    """Adds the weight's path to the message of a mismatch."""
    return _matching.naming(path, _matching.COVARIANCE_NAME, _MISMATCH)


def _after(flag: jax.Array, arrays: list[jax.Array]) -> jax.Array:
    """The flag, computed after the arrays.

    XLA schedules what depends on the forward pass alone in the middle of the backward
    pass, where memory is scarcest, and drops `optimization_barrier` before it does so.
    So the flag is joined with a condition on the arrays that is always true but that
    XLA cannot fold: a sign bit, shifted right as a signed number, is 0 or -1.
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
            " real weights. Leave it out by scope, a function from paths to True or"
            " False"
        )
