"""The layout of a covariance: one rule for layers that sow and for the state."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from insgd_optax import (
    capture_input_covariances,
    covariance_cosines,
    input_covariance_shapes,
    lms_newton,
    scale_by_input_covariance,
)
from insgd_optax._covariance import InputCovariance
from insgd_optax._covariance_form import assumed_form, form_of, reduced
from insgd_optax._covariance_state import total
from insgd_optax._matching import ShapeMismatchError

PLAIN = {"damping": 0.0, "eps": 1e-20, "preserve_norm": False}

LAYERS = {
    "dense": (nn.Dense(3), (2, 12)),
    "conv 1d": (nn.Conv(3, (3,)), (2, 5, 6)),
    "conv 2d": (nn.Conv(3, (3, 3)), (2, 5, 5, 6)),
    "conv 3d": (nn.Conv(3, (2, 2, 2)), (2, 3, 3, 3, 5)),
    "attention": (nn.MultiHeadDotProductAttention(4), (2, 3, 12)),
    "one head": (nn.MultiHeadDotProductAttention(1), (2, 3, 12)),
    "flattening": (nn.DenseGeneral(3, axis=(-2, -1)), (2, 4, 6)),
    "flattening three": (nn.DenseGeneral(3, axis=(-3, -2, -1)), (2, 4, 2, 6)),
}


def factor_shapes(opt_state):
    (state,) = (s for s in opt_state if hasattr(s, "layers"))
    leaves = jax.tree.leaves(state.layers, is_leaf=lambda x: hasattr(x, "factors"))
    return [[f.shape for f in x.factors] for x in leaves if hasattr(x, "factors")]


@pytest.mark.parametrize("max_dim", [2, 4, 6, 10, 12, 768])
@pytest.mark.parametrize(("model", "shape"), LAYERS.values(), ids=LAYERS)
def test_the_optimizer_assumes_the_layout_that_the_layer_sows(model, shape, max_dim):
    """The kernel's shape is enough, even if axes are too long for one matrix."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    with capture_input_covariances(max_dim=max_dim):
        like = input_covariance_shapes(model, jax.random.key(0), x)
    assumed = jax.eval_shape(lms_newton(0.1, max_dim=max_dim).init, params)
    given = jax.eval_shape(lms_newton(0.1, input_covariances_like=like).init, params)
    assert factor_shapes(assumed) == factor_shapes(given)
    if max_dim >= 8:  # Enough for two entries along each of three axes.
        sizes = [np.prod(s[len(s) // 2 :]) for f in factor_shapes(given) for s in f]
        assert max(sizes) <= max_dim


def test_attention_wider_than_max_dim_has_finite_updates():
    model = nn.MultiHeadDotProductAttention(4)
    x = jax.random.normal(jax.random.key(0), (2, 3, 8))
    params = jax.jit(model.init)(jax.random.key(1), x)["params"]
    tx = lms_newton(0.1, max_dim=4)

    @jax.jit
    def step(params):
        def loss_fn(params):
            with capture_input_covariances(max_dim=4):
                y, sown = model.apply({"params": params}, x, mutable=["intermediates"])
            return jnp.mean(y**2), sown

        grads, sown = jax.grad(loss_fn, has_aux=True)(params)
        return jax.jit(tx.update)(grads, tx.init(params), input_covariances=sown)

    updates, _ = step(params)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(updates))


@pytest.mark.parametrize(
    ("shape", "max_dim", "blocks"),
    [
        ((2, 6), 6, (2, 3)),
        ((4, 8), 6, (2, 3)),
        ((2, 2), 4, (2, 2)),
        ((5, 3), 3, (2, 2)),
    ],
)
def test_blocks_of_one_vector_are_damped_by_its_whole_trace(
    x64, shape, max_dim, blocks
):
    rng = np.random.default_rng(0)
    model = nn.DenseGeneral(1, axis=(-2, -1), param_dtype=jnp.float64)
    # One input is far stronger than the others: blocks' own traces would differ.
    x = (
        rng.normal(size=(50, *shape))
        * np.where(np.arange(shape[0]) == 0, 30, 1)[:, None]
    )
    g = rng.normal(size=(*shape, 1))
    grads = {"kernel": jnp.asarray(g), "bias": jnp.zeros(1)}

    @jax.jit
    def update(x):
        with capture_input_covariances(max_dim=max_dim):
            _, sown = model.apply({"params": grads}, x, mutable=["intermediates"])
        tx = scale_by_input_covariance(max_dim=max_dim, eps=0.0, preserve_norm=False)
        return jax.jit(tx.update)(grads, tx.init(grads), input_covariances=sown)[0][
            "kernel"
        ]

    rows = x.reshape(50, -1)
    d = rows.shape[1]
    index = np.stack(np.indices(shape), -1).reshape(d, 2) // blocks
    together = (index[:, None] == index[None]).all(-1)
    a = rows.T @ rows / 50
    damped = a * together + np.trace(a) / d * np.eye(d)
    wanted = np.linalg.solve(damped, g.reshape(d)).reshape(g.shape)
    np.testing.assert_allclose(update(jnp.asarray(x)), wanted, rtol=1e-10)


@pytest.mark.parametrize("max_dim", [2, 3, 4, 8, 32])
def test_the_initial_covariance_is_the_same_in_every_form(x64, max_dim):
    """The inverse of A_0 = I / 2 doubles the gradient, whatever the blocks."""
    params = {"kernel": jnp.ones((2, 2, 8, 3))}
    tx = scale_by_input_covariance(initial_covariance=0.5, max_dim=max_dim, **PLAIN)
    model = nn.Conv(3, (2, 2), padding="VALID", use_bias=False, param_dtype=jnp.float64)
    # One receptive field in each of 32 samples, of the same covariance.
    white = np.sqrt(0.5) * np.eye(32).reshape(32, 2, 2, 8) * np.sqrt(32)

    @jax.jit
    def update(x):
        with capture_input_covariances(max_dim=max_dim):
            _, sown = model.apply({"params": params}, x, mutable=["intermediates"])
        return jax.jit(tx.update)(params, tx.init(params), input_covariances=sown)[0][
            "kernel"
        ]

    np.testing.assert_allclose(update(jnp.asarray(white)), 2, rtol=1e-12)


def test_an_injected_initial_covariance_may_be_traced():
    make = optax.inject_hyperparams(scale_by_input_covariance, static_args=("max_dim",))
    tx = make(initial_covariance=0.5)
    params = {"kernel": jnp.ones((2, 1))}
    state = jax.jit(tx.init)(params)
    assert state.hyperparams["initial_covariance"] == 0.5


def test_a_zero_gradient_has_a_cosine_of_one():
    params = {"kernel": jnp.zeros((3, 2))}
    tx = lms_newton(0.1)
    x = jnp.ones((4, 3))
    with capture_input_covariances():
        _, sown = nn.Dense(2, use_bias=False).apply(
            {"params": params}, x, mutable=["intermediates"]
        )
    _, state = jax.jit(tx.update)(params, tx.init(params), input_covariances=sown)
    assert covariance_cosines(state) == {"kernel": 1}


@pytest.mark.parametrize(
    ("shapes", "weight", "lead"),
    [
        ([(1, 1)], (1, 1, 3), None),  # a kernel without axes
        ([(4, 1, 4, 1)], (3,), None),  # more axes than the weight
        ([(4, 1, 4, 1)], (2, 4, 3), 0),  # stacked weights, but not the covariance
        ([(4, 1, 4, 1), (4, 4)], (4, 3), None),  # factors of two ranks
        ([(4, 1, 4, 1)], (5, 3), None),  # another length
        ([(2, 1, 2, 1)], (4, 3), None),  # half the inputs, but no groups
        ([(4, 1, 4, 1), (2, 1, 2, 1)], (4, 3), None),  # factors of two lengths
    ],
)
def test_a_covariance_of_another_layer_is_refused(shapes, weight, lead):
    with pytest.raises(ShapeMismatchError, match="not laid out like|does not fit"):
        form_of(shapes, weight, lead)


def test_a_sown_covariance_that_does_not_fit_the_state_is_refused():
    form = form_of([(4, 1, 4, 1)], (4, 3))
    two = [jnp.zeros((4, 1, 2, 1)), jnp.zeros((4, 1, 1, 1))]
    with pytest.raises(ShapeMismatchError, match="it has 2 factors, not 1"):
        reduced(two, 0, form)
    with pytest.raises(ShapeMismatchError, match="4 by 2, not 4 by 4"):
        reduced(two[:1], 0, form)
    # One kernel of (4, 4) inputs, not four kernels of 4.
    kernels = form_of([(4, 4, 1, 1, 4, 1)], (4, 4, 3))
    with pytest.raises(ShapeMismatchError, match="axis 0 .* 4 by 4, not 4 by 1"):
        reduced([jnp.zeros((4, 4, 1, 4, 4, 1))], 0, kernels)
    sown = InputCovariance((jnp.zeros((2, 2, 1, 2, 2, 1)),), jnp.zeros(()))
    with pytest.raises(ShapeMismatchError, match="not laid out like a kernel"):
        total([sown], form, jnp.float32)


def test_blocks_are_cut_from_the_diagonal():
    whole = jnp.arange(16.0).reshape(4, 1, 4, 1)
    (blocks,) = reduced([whole], 0, form_of([(4, 1, 2, 1)], (4, 3)))
    wanted = [[0, 1], [4, 5], [10, 11], [14, 15]]
    np.testing.assert_array_equal(blocks.reshape(4, 2), wanted)


def test_a_bias_of_other_axes_leaves_the_assumed_form_unchanged():
    form = assumed_form((2, 3, 4), (5, 5), 768)
    assert form == assumed_form((2, 3, 4), None, 768)


@pytest.mark.parametrize("make", [capture_input_covariances, lms_newton])
def test_a_max_dim_of_one_is_refused(make):
    rate = () if make is capture_input_covariances else (0.1,)
    with (
        pytest.raises(ValueError, match="max_dim=1 must be a whole number of at least"),
        make(*rate, max_dim=1),
    ):
        pass
