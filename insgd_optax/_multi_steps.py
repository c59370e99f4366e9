"""Gradient accumulation that also averages the input norms and the loss."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jax.typing import ArrayLike, DTypeLike

from insgd_optax import _matching
from insgd_optax._accumulation_warning import accumulated
from insgd_optax._compat import is_placeholder
from insgd_optax._covariance import InputCovariance, checked
from insgd_optax._covariance_capture import covariances_by_layer
from insgd_optax._covariance_link import naming as naming_covariance
from insgd_optax._covariance_state import (
    LayerCovariance,
    ScaleByInputCovarianceState,
    form_of_state,
    scaled_layers,
    total,
)
from insgd_optax._input_power import ScaleByInputPowerState
from insgd_optax._missing import missing_argument
from insgd_optax._norms import statistic_dtype
from insgd_optax._paths import (
    Path,
    flatten,
    states_of,
)
from insgd_optax._polyak import ClipByPolyakState, checked_value


class MultiSteps:
    """`optax.MultiSteps` for an optimizer that takes input norms.

    Every k-th call of `update` takes one step of the inner optimizer, with the means of
    the last k gradients and input norms; the other calls return zeros.
    `optax.MultiSteps` passes on only the last micro-batch's norms. Use this class as
    the outermost transformation: a chain around it drops the norms, unless the chain is
    given `gradient_transformation()` instead of the object. The loss that
    `clip_by_polyak` takes as `value` is averaged, or summed, as the gradients are.
    Input covariances are summed.

    If the gradient or the loss of a micro-batch is inf or nan, so is the accumulated
    gradient or loss of its step: `clip_by_polyak` then adds nothing to the momentum,
    and `optax.apply_if_finite` skips a step whose gradient is not finite. The next step
    starts afresh. To drop only the micro-batch, if its gradient is not finite, pass
    `should_skip_update_fn=optax.skip_not_finite`.

    Args:
        opt: the optimizer, such as `insgd(...)`, or a chain with it.
        every_k_schedule: k, or a function from the number of steps taken to k.
        use_grad_mean: whether gradients are averaged, or summed. Norms are averaged
            either way.
        should_skip_update_fn: as for `optax.MultiSteps`, a function of the gradients,
            the number of steps taken and the parameters. The norms of a skipped
            micro-batch are skipped too.
        accumulator_dtype: the dtype in which gradients, norms and losses are summed.
            None is float32, or float64 for float64 weights.

    Raises:
        ValueError: on construction, if `accumulator_dtype` is neither float32 nor
            float64; from `init` and `update`, as those of the inner optimizer.

    Example:
        >>> import jax.numpy as jnp
        >>> from insgd_optax import MultiSteps, input_powers, insgd
        >>> params = {"Dense_0": {"kernel": jnp.ones((2, 1))}}
        >>> tx = MultiSteps(insgd(0.1), every_k_schedule=2)
        >>> state = tx.init(params)
        >>> for norm in (10.0, 30.0):
        ...     norms = {"Dense_0": {"input_norm": jnp.array(norm)}}
        ...     _, state = tx.update(params, state, params, input_norms=norms)
        >>> print(input_powers(state)["Dense_0/kernel"])
        20.0

    Source: this library. With micro-batches of equal size, the step equals that of the
    whole batch, because the norm in Eq. 26 is taken as a mean over samples.
    """

    def __init__(
        self,
        opt: optax.GradientTransformation,
        every_k_schedule: int | Callable[[Any], Any],
        use_grad_mean: bool = True,
        should_skip_update_fn: Callable[..., tuple[Any, Any]] | None = None,
        accumulator_dtype: DTypeLike | None = None,
    ) -> None:
        self._opt = optax.with_extra_args_support(opt)
        self._every_k_schedule = every_k_schedule
        self._use_grad_mean = use_grad_mean
        self._should_skip_update_fn = should_skip_update_fn
        if accumulator_dtype is not None:
            accumulator_dtype = jnp.dtype(accumulator_dtype)
            if accumulator_dtype not in (jnp.dtype("float32"), jnp.dtype("float64")):
                raise ValueError(
                    f"accumulator_dtype={accumulator_dtype} cannot hold sums of input"
                    " norms: give float32 or float64, or None for the wider of float32"
                    " and the weights' dtype"
                )
        self._accumulator_dtype = accumulator_dtype

    def init(self, params: optax.Params) -> optax.MultiStepsState:
        """Returns the initial state; `params` may be abstract."""
        if is_placeholder(params):
            # Like P, the accumulated norms do not mirror the parameters.
            return self._steps([]).init((params, *[jnp.zeros([])] * 3))
        inner = jax.eval_shape(self._opt.init, params)
        loss = jnp.zeros([]) if states_of(inner, ClipByPolyakState) else None
        accumulators = (_accumulators(inner), loss, _covariance_accumulators(inner))
        weights = flatten(params).present.values()
        return self._steps(weights).init((params, *accumulators))

    def update(
        self,
        updates: optax.Updates,
        state: optax.MultiStepsState,
        params: optax.Params | None = None,
        *,
        input_norms: Any = None,
        input_covariances: Any = None,
        value: ArrayLike | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.MultiStepsState]:
        """Accumulates gradients and input statistics.

        Every k-th call returns the updates of the inner optimizer; the others return
        zeros.
        """
        bounded = bool(states_of(state.inner_opt_state, ClipByPolyakState))
        loss = checked_value(value) if bounded else None
        powers = _powers(state.inner_opt_state)
        if powers and input_norms is None:
            given = {"input_covariances": input_covariances}
            raise ValueError(missing_argument(_matching.NAME, given))
        layers = _layer_covariances(state.inner_opt_state)
        if layers and input_covariances is None:
            name, given = _matching.COVARIANCE_NAME, {"input_norms": input_norms}
            raise ValueError(missing_argument(name, given))
        sown = _matching.by_layer(input_norms)
        weights = flatten(updates).present
        norms = _micro_norms(weights, powers, sown)
        sown_covariances = covariances_by_layer(input_covariances)
        covariances = _micro_covariances(weights, layers, sown_covariances)
        absent = [path for path in powers if _matching.find(sown, path) is None]
        absent += [
            path for path in layers if _matching.find(sown_covariances, path) is None
        ]
        if absent:
            # Only the inner optimizer knows whether a missing statistic is an error.
            jax.eval_shape(
                lambda updates, state, params: self._opt.update(
                    updates,
                    state,
                    params,
                    input_norms=input_norms,
                    input_covariances=input_covariances,
                    value=value,
                    **extra_args,
                ),
                updates,
                state.inner_opt_state,
                params,
            )
        if value is not None:
            # As in optax.MultiSteps, the value of the last micro-batch is passed on,
            # unless values are accumulated.
            extra_args["value"] = value
        every_k = self._every_k_schedule
        k = every_k(state.gradient_step) if callable(every_k) else every_k
        steps = self._steps(weights.values(), state.mini_step == k - 1)
        nothing = (None, None, None)
        (updates, *_), state = steps.update(
            (updates, norms, loss, covariances),
            state,
            (params, *nothing),
            **extra_args,
        )
        # optax multiplies by 0, and 0 * nan is nan. Norms and covariances are finite.
        has_ended = state.mini_step == 0
        grads, norms, loss, covariances = state.acc_grads
        grads, loss = jax.tree.map(lambda x: jnp.where(has_ended, 0, x), (grads, loss))
        updates = jax.tree.map(lambda x: jnp.where(has_ended, x, 0), updates)
        return updates, state._replace(acc_grads=(grads, norms, loss, covariances))

    def has_updated(self, state: optax.MultiStepsState) -> jax.Array:
        """Whether the last `update` took a step of the inner optimizer.

        As in `optax.MultiSteps`, it stays true while the first micro-batches of the
        next step are skipped.
        """
        return jnp.logical_and(state.mini_step == 0, state.gradient_step > 0)

    def gradient_transformation(self) -> optax.GradientTransformationExtraArgs:
        """Returns this wrapper as a `GradientTransformationExtraArgs`."""
        return optax.GradientTransformationExtraArgs(self.init, self.update)

    def _steps(self, weights: Iterable[Any], is_last: Any = True) -> optax.MultiSteps:
        """`optax.MultiSteps` that also accumulates norms, loss and covariances."""

        def init(params: Any) -> Any:
            with accumulated():
                return self._opt.init(params[0])

        def update(updates: Any, state: Any, params: Any, **extra: Any) -> Any:
            grads, norms, loss, covariances = updates
            if norms:
                extra["input_norms"] = _means(norms)
            if covariances:
                extra["input_covariances"] = _mean_covariances(covariances, is_last)
            if loss is not None:
                extra["value"] = loss
            grads, state = self._opt.update(grads, state, params[0], **extra)
            return (grads, norms, loss, covariances), state

        def should_skip(updates: Any, step: Any, params: Any) -> tuple[Any, Any]:
            assert self._should_skip_update_fn is not None
            return self._should_skip_update_fn(updates[0], step, params[0])

        dtypes = {statistic_dtype(weight.dtype) for weight in weights}
        # Of float32 and float64 the wider, which is also the last by name.
        widest = max(dtypes, key=str, default=jnp.dtype("float32"))
        return optax.MultiSteps(
            optax.GradientTransformationExtraArgs(init, update),
            self._every_k_schedule,
            self._use_grad_mean,
            should_skip if self._should_skip_update_fn is not None else None,
            accumulator_dtype=self._accumulator_dtype or widest,
        )


def _powers(inner_state: Any) -> dict[Path, Any]:
    """Each scaled weight's P; of several the one with the most axes."""
    powers: dict[Path, Any] = {}
    for power_state in states_of(inner_state, ScaleByInputPowerState):
        for path, power in flatten(power_state.power).present.items():
            known = powers.get(path)
            if known is None or power.ndim > known.ndim:
                powers[path] = power
    return powers


def _accumulators(inner_state: Any) -> Any:
    """Zeros for each scaled weight: the sum of its norms, and their number."""
    zeros = {
        path: (jnp.zeros(power.shape, power.dtype),) * 2
        for path, power in _powers(inner_state).items()
    }
    return traverse_util.unflatten_dict(zeros)


def _micro_norms(
    weights: dict[Path, Any], powers: dict[Path, Any], sown: _matching.Sown
) -> Any:
    """One micro-batch's norms in the accumulators' shapes, with their counts.

    Both are 0 where a norm is missing or not finite.
    """
    found = _matching.matches(sown, weights)
    _matching.check_not_shared(sown, powers)
    parts = {}
    for path, power in powers.items():
        norm, good = jnp.zeros(power.shape), jnp.zeros(power.shape, bool)
        if path in found:
            norm = found[path].mean(power.shape)
            good = jnp.isfinite(norm)
        parts[path] = (
            jnp.where(good, norm, 0).astype(power.dtype),
            good.astype(power.dtype),
        )
    return traverse_util.unflatten_dict(parts)


def _layer_covariances(inner_state: Any) -> dict[Path, LayerCovariance]:
    """The covariance state of each weight that has one; of several, the largest.

    The others consist of its diagonal blocks or partial traces.
    """
    layers: dict[Path, LayerCovariance] = {}
    for state in states_of(inner_state, ScaleByInputCovarianceState):
        for path, layer in scaled_layers(state):
            if path not in layers or _size(layer) > _size(layers[path]):
                layers[path] = layer
    return layers


def _size(layer: LayerCovariance) -> int:
    return sum(factor.size for factor in layer.factors)


def _covariance_accumulators(inner_state: Any) -> Any:
    """Zeros for each weight: the sum of its covariances, and their number of rows."""
    zeros = {
        path: (
            tuple(jnp.zeros(x.shape, x.dtype) for x in layer.factors),
            jnp.zeros(layer.mass.shape, layer.mass.dtype),
        )
        for path, layer in _layer_covariances(inner_state).items()
    }
    return traverse_util.unflatten_dict(zeros)


def _micro_covariances(
    weights: dict[Path, Any],
    layers: dict[Path, LayerCovariance],
    sown: dict[Path, list[InputCovariance]],
) -> Any:
    """One micro-batch's sums in the accumulators' shapes, with their counts of rows.

    Both are 0 where a covariance is missing or not finite.
    """
    _matching.check_not_shared(sown, layers, _matching.COVARIANCE_NAME)
    parts = {}
    for path, layer in layers.items():
        parts[path] = (
            tuple(map(jnp.zeros_like, layer.factors)),
            jnp.zeros_like(layer.mass),
        )
        uses = _matching.find(sown, path)
        if uses is not None:
            with naming_covariance(path):
                form = form_of_state(layer, weights[path].shape)
                batch = checked(total(uses, form, layer.mass.dtype))
                parts[path] = (batch.factors, batch.count)
    return traverse_util.unflatten_dict(parts)


def _mean_covariances(covariances: Any, is_last: Any) -> Any:
    """The whole batch's covariances, as a tree that a model could have sown.

    Averaging both sums and counts leaves their ratio unchanged. optax runs the inner
    optimizer on every micro-batch; the count is 0 on all but the last one, so that
    inverses are computed once.
    """
    tree = {}
    for path, (factors, rows) in traverse_util.flatten_dict(covariances).items():
        rows = jnp.where(is_last, rows, 0).astype(rows.dtype)
        name = _matching.entry_name(_matching.COVARIANCE_NAME, path[-1])
        tree[(*path[:-1], name)] = (InputCovariance(factors, rows),)
    return traverse_util.unflatten_dict(tree)


def _means(norms: Any) -> Any:
    """The input norms of the whole batch, as a tree that a model could have sown."""
    return traverse_util.unflatten_dict(
        {
            # 0 / 0, where every micro-batch was bad, is nan: P stays.
            (*path[:-1], _matching.entry_name(_matching.NAME, path[-1])): total / count
            for path, (total, count) in traverse_util.flatten_dict(norms).items()
        }
    )
