"""The state of one weight's covariance, and its update."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from insgd_optax import _whitening
from insgd_optax._covariance import InputCovariance, checked, from_matrices, leading
from insgd_optax._covariance_form import Form, form_of, reduced
from insgd_optax._inverse import invert_all
from insgd_optax._matching import ShapeMismatchError, excess_axes
from insgd_optax._matrices import identities
from insgd_optax._paths import Path, is_masked, tuple_path


class LayerCovariance(NamedTuple):
    """The state of `scale_by_input_covariance` for one weight.

    Its arrays are float32, or float64 for a float64 weight. With d inputs they take
    8 d^2 + 8 bytes in float32; in the Kronecker form with t kernel positions (taps) and
    c channels, 8 t^2 + 4 (t + 1) c^2 + 8.

    Attributes:
        factors: the running mean of X^T X / n before bias correction, laid out like the
            weight: for a kernel (d, m), one array of shape (d, 1, d, 1).
        mass: 1 - decay^t after t captures, or 1 with `initial_covariance`; the mean is
            divided by it. Shape (), or that of the stacked axes.
        inverse: D: for a kernel (d, m), one array of shape (1, 1, d, d); in the
            Kronecker form, the eigenvectors of the taps, and for each of them a matrix
            of channels.
        cosine: the cosine between the last update and the incoming one, shaped like
            `mass`; 1 before the first.
    """

    factors: tuple[jax.Array, ...]
    mass: jax.Array
    inverse: tuple[jax.Array, ...]
    cosine: jax.Array


class ScaleByInputCovarianceState(NamedTuple):
    """State of `scale_by_input_covariance`.

    Attributes:
        count: the number of updates: shape (), int32.
        failures: the number of factorizations that failed, where the previous inverse
            was kept: shape (), int32.
        layers: a tree like the parameters: `LayerCovariance` where a weight is scaled;
            `optax.MaskedNode()` elsewhere.
    """

    # `count` shadows tuple.count, hence the ignore.
    count: jax.Array  # type: ignore[assignment]
    failures: jax.Array
    layers: Any


class InverseRootState(ScaleByInputCovarianceState):
    """A `ScaleByInputCovarianceState` whose layers hold the square root of D."""


def flat_layers(layers: Any) -> tuple[list[Path], list[Any], Any]:
    """The paths and nodes of a state's `layers`, masked ones too, and its treedef."""

    def is_leaf(node: Any) -> bool:
        return isinstance(node, LayerCovariance) or is_masked(node)

    nodes, treedef = jax.tree_util.tree_flatten_with_path(layers, is_leaf=is_leaf)
    return [tuple_path(keys) for keys, _ in nodes], [node for _, node in nodes], treedef


def initial_layer(
    form: Form, dtype: DTypeLike, initial: float | None
) -> LayerCovariance:
    shapes = form.shapes
    factors = tuple(jnp.zeros(shape, dtype) for shape in shapes)
    mass = jnp.zeros(form.stack, dtype)
    if initial is not None:
        # If there are two factors, each has the trace of the whole.
        lengths = [factor.length for factor in form.factors]
        others = lengths[::-1] if len(lengths) > 1 else [1]
        factors = tuple(
            from_matrices(
                jnp.broadcast_to(
                    initial * other * jnp.eye(factor.dim, dtype=dtype),
                    (*form.stack, *factor.counts, factor.dim, factor.dim),
                ),
                factor,
                len(form.stack),
            )
            for factor, other in zip(form.factors, others, strict=True)
        )
        mass = jnp.ones(form.stack, dtype)
    cosine = jnp.ones(form.stack, dtype)
    return LayerCovariance(factors, mass, _whitening.identity(form, dtype), cosine)


def form_of_sown(sown: InputCovariance, weight: tuple[int, ...]) -> Form:
    """The form of a weight whose layer sows this."""
    return form_of(
        [factor.shape for factor in sown.factors], weight, len(sown.count.shape)
    )


def form_of_state(layer: LayerCovariance, weight: tuple[int, ...]) -> Form:
    """The form in which a state keeps the covariance of a weight."""
    return form_of([factor.shape for factor in layer.factors], weight)


def scaled_layers(
    state: ScaleByInputCovarianceState,
) -> list[tuple[Path, LayerCovariance]]:
    """Returns the path and the covariance of each weight that a state scales."""
    paths, nodes, _ = flat_layers(state.layers)
    pairs = zip(paths, nodes, strict=True)
    return [(path, node) for path, node in pairs if not is_masked(node)]


def total(sown: list[InputCovariance], form: Form, dtype: DTypeLike) -> InputCovariance:
    """All that a layer sowed in one pass, in the form of its weight.

    Raises:
        ShapeMismatchError: if it does not fit.
    """
    uses = []
    for use in sown:
        lead = use.count.ndim
        if (use.factors[0].ndim - lead) != 2 * len(form.kernel):
            raise ShapeMismatchError(
                f"{use.factors[0].shape} is not laid out like a kernel {form.kernel}"
            )
        axes = excess_axes(use.count.shape, form.stack, form.stack)
        factors = [factor.sum(axis=axes) for factor in use.factors]
        factors = reduced(factors, len(form.stack), form)
        laid_out = tuple(
            jnp.broadcast_to(factor, shape).astype(dtype)
            for factor, shape in zip(factors, form.shapes, strict=True)
        )
        count = jnp.broadcast_to(use.count.sum(axis=axes), form.stack).astype(dtype)
        uses.append(InputCovariance(laid_out, count))
    return jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *uses)


def next_layers(
    layers: Mapping[Path, LayerCovariance],
    batches: Mapping[Path, InputCovariance],
    forms: Mapping[Path, Form],
    settings: tuple[ArrayLike, ArrayLike, ArrayLike],
    root: bool,
) -> tuple[dict[Path, LayerCovariance], jax.Array]:
    """The next state of each weight, and the number of factorizations that failed.

    Args:
        layers: the states.
        batches: for each, what `total` returned; its factors may lack axes of length 1.
        forms: the forms of the weights.
        settings: decay, damping and eps.
        root: whether `inverse` is the root of D.
    """
    captured, means, covariances = {}, {}, {}
    for path, layer in layers.items():
        form = forms[path]
        decay, damping, eps = (jnp.asarray(x, layer.mass.dtype) for x in settings)
        batch = _laid_out(batches[path], form)
        captured[path] = batch.count > 0
        means[path] = mean = _next_mean(layer, batch, decay)
        mass = jnp.where(mean.mass > 0, mean.mass, 1)
        corrected = tuple(x / leading(mass, x.ndim) for x in mean.factors)
        covariances[path] = _whitening.damped(form, corrected, damping, eps)
    matrices = [
        _or_identity(captured[path], covariance.matrices)
        for path, covariance in covariances.items()
    ]
    least = [covariance.least for covariance in covariances.values()]
    guesses: list[jax.Array] = []
    if not root:
        # The former inverses, since A changes little from one capture to the next.
        for path, layer in layers.items():
            guess = _whitening.guess(covariances[path], layer.inverse[-1])
            guesses.append(_or_identity(captured[path], guess))
    inverses = invert_all(matrices, least, root, guesses)
    following, failures = {}, jnp.zeros([], jnp.int32)
    for (path, layer), inverse in zip(layers.items(), inverses, strict=True):
        new, good = _whitening.in_input_units(
            forms[path], covariances[path], inverse, root
        )
        new = tuple(
            _where(captured[path] & good, *pair)
            for pair in zip(new, layer.inverse, strict=True)
        )
        following[path] = means[path]._replace(inverse=new)
        failures += jnp.sum(captured[path] & ~good).astype(jnp.int32)
    return following, failures


def _laid_out(batch: InputCovariance, form: Form) -> InputCovariance:
    factors = zip(batch.factors, form.shapes, strict=True)
    return checked(
        batch._replace(factors=tuple(x.reshape(shape) for x, shape in factors))
    )


def _next_mean(
    layer: LayerCovariance, batch: InputCovariance, decay: jax.Array
) -> LayerCovariance:
    """The state with the next running mean, and its former inverse."""
    captured = batch.count > 0
    rows = jnp.where(captured, batch.count, jnp.ones_like(batch.count))
    factors = tuple(
        _where(
            captured, decay * old + (1 - decay) * (new / leading(rows, new.ndim)), old
        )
        for old, new in zip(layer.factors, batch.factors, strict=True)
    )
    mass = jnp.where(captured, decay * layer.mass + (1 - decay), layer.mass)
    return layer._replace(factors=factors, mass=mass)


def _or_identity(captured: jax.Array, matrices: jax.Array) -> jax.Array:
    """The identity for layers without a capture, whose results are not used.

    So they never need a factorization.
    """
    return _where(captured, matrices, identities(matrices.shape, matrices.dtype))


def _where(choice: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    return jnp.where(leading(choice, old.ndim), new, old)
