"""Models whose `nn.scan` and `nn.vmap` do not mention "intermediates"."""

import threading

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import insgd_optax.nnx
from insgd_optax import capture_input_norms, input_norm_shapes, input_powers, insgd

SPLIT = {"params": True}
X = jax.random.normal(jax.random.key(0), (5, 4))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        self.sow("intermediates", "features", x)
        return nn.tanh(nn.Dense(4)(x)), None


class Before(nn.Module):
    """A layer outside the scan sows before it."""

    axes: dict

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4, name="first")(x)
        scan = nn.scan(Block, variable_axes=self.axes, split_rngs=SPLIT, length=3)
        return scan(name="block")(x, None)[0]


class Shared(nn.Module):
    """The parameters are shared by the steps, and the module by two calls."""

    axes: dict

    @nn.compact
    def __call__(self, x):
        scan = nn.scan(
            Block,
            variable_axes=self.axes,
            variable_broadcast="params",
            split_rngs={"params": False},
            length=3,
        )(name="block")
        return scan(scan(x, None)[0], None)[0]


class Body(nn.Module):
    """A scan of a function of a module whose scope already holds sown values."""

    axes: dict

    @nn.compact
    def __call__(self, x):
        dense = nn.Dense(4)
        scan = nn.scan(
            lambda module, x, _: (module(x), None),
            variable_axes=self.axes,
            variable_broadcast="params",
            split_rngs={"params": False},
            length=2,
        )
        x = dense(x)
        x, _ = scan(dense, x, None)
        return scan(dense, x, None)[0]


class Critics(nn.Module):
    axes: dict

    @nn.compact
    def __call__(self, x):
        vmap = nn.vmap(
            Block, variable_axes=self.axes, split_rngs=SPLIT, in_axes=None, axis_size=2
        )
        return vmap(name="block")(x)[0].sum(axis=0)


class Nested(nn.Module):
    """A scan of a vmap of layers."""

    axes: dict

    @nn.compact
    def __call__(self, x):
        heads = nn.vmap(Block, variable_axes=self.axes, split_rngs=SPLIT, axis_size=2)
        scan = nn.scan(heads, variable_axes=self.axes, split_rngs=SPLIT, length=3)
        return scan(name="block")(jnp.stack([x, x]), None)[0]


class Remat(nn.Module):
    axes: dict

    @nn.compact
    def __call__(self, x):
        scan = nn.scan(
            nn.remat(Block), variable_axes=self.axes, split_rngs=SPLIT, length=3
        )
        return scan(name="block")(x, None)[0]


class RematScan(nn.Module):
    axes: dict

    @nn.compact
    def __call__(self, x):
        return nn.remat_scan(nn.Dense, lengths=(2, 2))(4, name="block")(x)


def applied(model, params, x=X):
    def loss(params):
        with capture_input_norms(p=2):
            y, sown = model.apply({"params": params}, x, mutable=["intermediates"])
        return jnp.sum(y**2), (y, sown["intermediates"])

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


def norms(sown):
    return {
        jax.tree_util.keystr(path): value
        for path, value in jax.tree_util.tree_leaves_with_path(sown)
        if "input_norm" in jax.tree_util.keystr(path)
    }


MODELS = [Before, Shared, Critics, Nested, Remat, RematScan]


@pytest.mark.parametrize("kind", MODELS)
def test_norms_equal_those_of_a_model_that_lists_its_axes(kind):
    own = {} if kind is Shared else {"params": 0}
    model, listed = kind(own), kind({**own, "intermediates": 0})
    params = jax.jit(model.init)(jax.random.key(1), X)["params"]
    (_, (y, sown)), grads = applied(model, params)
    (_, (other_y, other_sown)), other_grads = applied(listed, params)
    np.testing.assert_array_equal(y, other_y)
    jax.tree.map(np.testing.assert_array_equal, grads, other_grads)
    ours, expected = norms(sown), norms(other_sown)
    # The second call of a shared module adds to what the first sowed.
    total, other_total = (
        {key.split("input_norm")[0] for key in each} for each in (ours, expected)
    )
    assert total == other_total
    for layer in total:
        a, b = (
            [v for k, v in each.items() if k.startswith(layer + "input_norm")]
            for each in (ours, expected)
        )
        for mine, other in zip(a, b, strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-6)
    # Without the context, both models give the same output.
    plain, other_plain = (
        jax.jit(each.apply)({"params": params}, X) for each in (model, listed)
    )
    np.testing.assert_array_equal(plain, other_plain)
    # Compiled without its gradient, the output may differ in the last bits.
    np.testing.assert_allclose(plain, y, rtol=1e-5, atol=1e-6)


def test_a_layer_also_used_outside_of_the_scan_sows_every_use():
    model = Body({})
    params = jax.jit(model.init)(jax.random.key(1), X)["params"]
    (_, (_, sown)), _ = applied(model, params)
    shapes = [value.shape for value in norms(sown).values()]
    assert shapes == [(1, 1), (2, 1, 1), (2, 1, 1)]
    dense = nn.Dense(4)
    x, expected = X, []
    for _ in range(5):
        expected.append(jnp.mean(jnp.sum(x**2, axis=-1)))
        x = dense.apply({"params": params["Dense_0"]}, x)
    found = jnp.concatenate([value.ravel() for value in norms(sown).values()])
    np.testing.assert_allclose(found, jnp.stack(expected), rtol=1e-5)


def test_the_model_s_own_sown_values_stay_inside_the_scan():
    model = Before({"params": 0})
    params = jax.jit(model.init)(jax.random.key(1), X)["params"]
    (_, (_, sown)), _ = applied(model, params)
    assert "features" not in sown["block"]
    with capture_input_norms():
        _, sown = Before({"params": 0, "intermediates": 0}).apply(
            {"params": params}, X, mutable=["intermediates"]
        )
    assert sown["intermediates"]["block"]["features"][0].shape == (3, 5, 4)


def test_stacked_layers_each_keep_a_power():
    model = Before({"params": 0})
    params = jax.jit(model.init)(jax.random.key(1), X)["params"]
    with capture_input_norms():
        like = input_norm_shapes(model, jax.random.key(1), X)
    tx = insgd(0.1, input_norms_like=like)
    state = tx.init(params)
    (_, (_, sown)), grads = applied(model, params)
    _, state = jax.jit(tx.update)(grads, state, params, input_norms=sown)
    power = input_powers(state)["block/Dense_0/kernel"]
    (norm,) = sown["block"]["Dense_0"]["input_norm"]
    assert power.shape == (3, 1, 1)
    np.testing.assert_allclose(power, norm)


def test_parameters_stacked_along_another_axis_need_intermediates_there_too():
    def model(axes):
        return nn.vmap(
            nn.Dense, variable_axes=axes, split_rngs=SPLIT, in_axes=None, axis_size=4
        )(4)

    params = model({"params": 1}).init(jax.random.key(0), X)["params"]
    (_, (_, sown)), grads = applied(model({"params": 1, "intermediates": 1}), params)
    assert sown["input_norm"][0].shape == (1, 4, 1)
    with capture_input_norms():
        _, sown = model({"params": 1}).apply(
            {"params": params}, X, mutable=["intermediates"]
        )
    tx = insgd(0.1)
    with pytest.raises(ValueError, match="along an axis other than 0"):
        tx.update(grads, tx.init(params), params, input_norms=sown)


@pytest.mark.parametrize(
    "options",
    [
        {"variable_broadcast": "params", "variable_carry": "intermediates"},
        {"variable_broadcast": True},
    ],
    ids=["carry", "broadcast"],
)
def test_a_scan_that_carries_or_broadcasts_intermediates_is_unchanged(options):
    scan = nn.scan(Block, split_rngs={"params": False}, length=1, **options)
    params = jax.jit(Block().init)(jax.random.key(1), X)["params"]

    def run():
        return scan().apply({"params": params}, X, None)

    expected = run()
    with capture_input_norms():
        jax.tree.map(np.testing.assert_array_equal, run(), expected)


def test_one_rnn_can_be_captured_in_many_threads():
    rnn = nn.RNN(nn.SimpleCell(3))
    x = jax.random.normal(jax.random.key(0), (2, 5, 4))
    params = jax.jit(rnn.init)(jax.random.key(1), x)["params"]
    own, shapes = rnn.variable_axes, []
    barrier = threading.Barrier(4)

    def run():
        barrier.wait()
        for _ in range(5):
            with capture_input_norms():
                _, sown = rnn.apply({"params": params}, x, mutable=["intermediates"])
            shapes.extend(value.shape for value in norms(sown).values())
            assert rnn.variable_axes is own

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(shapes) == 40 and set(shapes) == {(5, 1, 1)}


def test_an_nnx_rnn_is_not_changed_during_its_call():
    """Another thread may be calling it."""
    seen = []

    class Cell(nnx.SimpleCell):
        def __call__(self, carry, inputs):
            seen.append(rnn.state_axes is own)
            return super().__call__(carry, inputs)

    class Counting(nnx.RNN):
        calls = 0

        def __call__(self, *args, **kwargs):
            self.calls += 1
            return super().__call__(*args, **kwargs)

    rngs = nnx.Rngs(0)
    rnn = Counting(Cell(4, 3, rngs=rngs), rngs=rngs)
    own = rnn.state_axes
    x = jax.random.normal(jax.random.key(0), (2, 5, 4))
    expected = rnn(x)
    with insgd_optax.nnx.capture_input_norms():
        y, sown = nnx.capture(rnn, nnx.Intermediate)(x)
    assert seen and all(seen) and rnn.calls == 2
    np.testing.assert_array_equal(y, expected)
    assert {value.shape for value in norms(sown).values()} == {(5, 1, 1)}
