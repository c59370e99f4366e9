"""Meshes with Explicit axes, the default of `jax.make_mesh`, give one device's step."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import insgd_optax.nnx
from insgd_optax import (
    capture_input_covariances,
    capture_input_norms,
    insgd,
    lms_newton,
    whiten_inputs,
)

STEPS = 3


def explicit_mesh():
    return jax.make_mesh((4, 2), ("data", "model"))


def on_mesh(tree, specs):
    """Shards a tree over a mesh; `specs` is one partition spec, or a tree of them."""
    mesh = explicit_mesh()
    shardings = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        specs,
        is_leaf=lambda node: isinstance(node, P),
    )
    return jax.device_put(tree, shardings)


def random_like(shapes, dtype):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), dtype), shapes)


class Layers(nn.Module):
    """A layer of each kind."""

    @nn.compact
    def __call__(self, images, tokens):
        nn.Conv(4, (3, 3), feature_group_count=2)(images)
        nn.Conv(3, (2, 2), 2, "CIRCULAR")(images[:, None])
        nn.ConvTranspose(3, (2, 2), (2, 2))(images)
        nn.ConvLocal(2, (3, 3), 3)(images)
        nn.DenseGeneral((2, 3), axis=(-2, -1))(tokens)
        nn.DenseGeneral(3, batch_dims=0)(tokens.swapaxes(0, 1))
        nn.Einsum((4, 2, 3), "btd,dhk->bthk")(tokens)
        nn.Dense(3)(tokens)
        nn.MultiHeadDotProductAttention(2)(tokens)
        nn.RNN(nn.OptimizedLSTMCell(3))(tokens)
        nn.LayerNorm()(tokens)


@functools.partial(jax.jit, static_argnums=0)
def sown_by_layers(is_plain, params, images, tokens, when):
    if is_plain:
        norms = capture_input_norms(norm_layers=True)
        covariances = capture_input_covariances(when=when, max_rows=24)
    else:
        norms = capture_input_norms(p=jnp.inf, conv_input="patch")
        covariances = capture_input_covariances(max_dim=4, conv_covariance="kronecker")
    with norms, covariances:
        _, sown = Layers().apply(
            {"params": params}, images, tokens, mutable=["intermediates"]
        )
    return sown


@pytest.mark.parametrize("is_plain", [True, False])
def test_every_layer_sows_the_statistics_of_one_device(is_plain):
    images = jax.random.normal(jax.random.key(0), (8, 4, 4, 4))
    tokens = jax.random.normal(jax.random.key(1), (8, 5, 4))
    shapes = jax.eval_shape(Layers().init, jax.random.key(2), images, tokens)
    params = random_like(shapes["params"], jnp.float32)
    expected = sown_by_layers(is_plain, params, images, tokens, True)
    batch = on_mesh((images, tokens), P("data"))
    when = on_mesh(jnp.array(True), P())
    actual = sown_by_layers(is_plain, on_mesh(params, P()), *batch, when)
    assert len(jax.tree.leaves(expected)) > 20
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, 1e-5, 1e-6 * float(jnp.abs(b).max()))
        assert a.sharding.is_fully_replicated


class Net(nn.Module):
    """A convolution and Megatron's pair, whose second product sums over "model"."""

    out_sharding: P | None = None

    @nn.compact
    def __call__(self, x):
        multiply = functools.partial(
            jax.lax.dot_general, out_sharding=self.out_sharding
        )
        x = nn.relu(nn.Conv(4, (3, 3), param_dtype=x.dtype)(x)).mean((1, 2))
        x = nn.relu(nn.Dense(6, param_dtype=x.dtype)(x))
        return nn.Dense(3, param_dtype=x.dtype, dot_general=multiply)(x)


SHARDED = {
    "Conv_0": {"kernel": P(), "bias": P()},
    "Dense_0": {"kernel": P(None, "model"), "bias": P("model")},
    "Dense_1": {"kernel": P("model", None), "bias": P()},
}
OPTIMIZERS = {
    "insgd": insgd(0.1, weight_decay=1e-3, polyak_factor=0.5, loss_lower_bound=-3.0),
    "lms_newton": lms_newton(0.1, weight_decay=1e-3),
    "whiten_inputs": optax.chain(whiten_inputs(optax.trace(0.9)), optax.scale(-0.1)),
}


@functools.partial(jax.jit, static_argnums=(0, 1))
def trained(model, tx, params, opt_state, x):
    """The parameters, the state and the losses after some steps.

    A scan requires each step to return arrays with the sharding of its inputs.
    """

    def step(carry, i):
        params, opt_state = carry

        def loss_fn(params):
            with (
                capture_input_norms(),
                capture_input_covariances(when=i % 2 == 0, max_rows=64),
            ):
                y, sown = model.apply({"params": params}, x, mutable=["intermediates"])
            return jnp.mean(jnp.sum(jnp.sin(y), axis=1)), sown

        (loss, sown), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(
            grads,
            opt_state,
            params,
            input_norms=sown,
            input_covariances=sown,
            value=loss,
        )
        return (optax.apply_updates(params, updates), opt_state), loss

    return jax.lax.scan(step, (params, opt_state), jnp.arange(STEPS))


@pytest.mark.parametrize(
    "name, specs",
    [("lms_newton", P()), *((name, SHARDED) for name in OPTIMIZERS)],
    ids=["replicated", *OPTIMIZERS],
)
def test_training_matches_that_of_one_device(name, specs, x64):
    tx = OPTIMIZERS[name]
    x = 3 * jax.random.normal(jax.random.key(0), (16, 4, 4, 2), jnp.float64)
    shapes = jax.eval_shape(Net().init, jax.random.key(1), x)
    params = random_like(shapes["params"], jnp.float64)
    (expected, _), losses = trained(Net(), tx, params, tx.init(params), x)
    params, x = on_mesh(params, specs), on_mesh(x, P("data"))
    if specs is SHARDED:
        with jax.set_mesh(explicit_mesh()):
            model, opt_state = Net(P("data")), tx.init(params)
            (actual, _), actual_losses = trained(model, tx, params, opt_state, x)
    else:
        opt_state = tx.init(params)
        (actual, _), actual_losses = trained(Net(), tx, params, opt_state, x)
    assert jax.tree.map(jax.typeof, actual) == jax.tree.map(jax.typeof, params)
    np.testing.assert_allclose(actual_losses, losses, rtol=1e-9)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-9), actual, expected)


def test_nnx_in_bfloat16_matches_one_device():
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0), param_dtype=jnp.bfloat16)
    tx = lms_newton(0.1, momentum=None)

    @jax.jit
    def gradient_and_update(params, opt_state, x):
        def loss_fn(params):
            layer = nnx.merge(nnx.graphdef(model), params)
            with insgd_optax.nnx.capture_input_covariances():
                y, sown = nnx.capture(layer, nnx.Intermediate)(x)
            return jnp.sum(jnp.square(y.astype(jnp.float32))), sown

        grads, sown = jax.grad(loss_fn, has_aux=True)(params)
        return sown, tx.update(grads, opt_state, params, input_covariances=sown)[0]

    params = nnx.state(model)
    x = jax.random.normal(jax.random.key(0), (8, 4), jnp.bfloat16)
    expected = gradient_and_update(params, tx.init(params), x)
    params = on_mesh(params, P())
    actual = gradient_and_update(params, tx.init(params), on_mesh(x, P("data")))
    for i, rtol in enumerate((1e-6, 2**-6)):  # the covariance, the update in bfloat16
        pairs = zip(*map(jax.tree.leaves, (actual[i], expected[i])), strict=True)
        for a, b in pairs:
            np.testing.assert_allclose(a.astype(float), b.astype(float), rtol)


def test_a_sharded_batch_is_not_gathered():
    @jax.jit
    def covariance(params, x):
        with capture_input_covariances():
            return nn.Dense(3).apply(params, x, mutable=["intermediates"])[1]

    params = {"params": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}}
    arguments = on_mesh(params, P()), on_mesh(jnp.ones((8, 4)), P("data"))
    program = covariance.lower(*arguments).compile().as_text()
    assert program.count("all-reduce(") == 1
    assert "all-gather" not in program and "collective-permute" not in program
