"""Capture and P under Flax's lifted transforms: scan, vmap, remat, jit, RNN."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from insgd_optax import (
    capture_input_norms,
    input_norm,
    input_norm_shapes,
    input_powers,
    scale_by_input_power,
)

AXES = {"params": 0, "intermediates": 0}
SPLIT = {"params": True}


def normal(*shape):
    return jax.random.normal(jax.random.key(1), shape)


def powers(model, x, *, like, scope="kernel", **kwargs):
    """P after one step, and the norms the model sowed."""
    params = model.init(jax.random.key(0), x)["params"]
    with capture_input_norms(**kwargs):
        _, sown = model.apply({"params": params}, x, mutable=["intermediates"])
        shapes = input_norm_shapes(model, jax.random.key(0), x) if like else None
    norms = sown["intermediates"]
    tx = scale_by_input_power(scope=scope, input_norms_like=shapes)
    state = tx.init(params)
    before = jax.tree.map(jnp.shape, state)
    _, state = tx.update(params, state, params, input_norms=norms)
    assert jax.tree.map(jnp.shape, state) == before
    return input_powers(state), norms, params


class Block(nn.Module):
    """One layer of a stack; scanned, its input is the carry."""

    @nn.compact
    def __call__(self, x, _=None):
        return nn.relu(nn.Dense(x.shape[-1])(x)), None


class Layers(nn.Module):
    length: int = 3

    @nn.compact
    def __call__(self, x):
        block = nn.scan(Block, AXES, split_rngs=SPLIT, length=self.length)
        return block(name="block")(x, None)[0]


def test_scanned_layers_keep_one_power_each():
    x = normal(4, 5)
    found, norms, params = powers(Layers(), x, like=True)
    (name,) = found
    assert name == "block/Dense_0/kernel"
    assert params["block"]["Dense_0"]["kernel"].shape == (3, 5, 5)
    assert found[name].shape == (3, 1, 1)
    inputs = [x]
    for layer in range(2):
        inputs.append(
            Block().apply(
                {"params": jax.tree.map(lambda w, i=layer: w[i], params["block"])},
                inputs[-1],
            )[0]
        )
    expected = [input_norm(z) for z in inputs]
    np.testing.assert_allclose(found[name].ravel(), expected, rtol=1e-5)
    np.testing.assert_allclose(
        norms["block"]["Dense_0"]["input_norm"][0].ravel(), expected, rtol=1e-5
    )


def test_scanned_layers_share_their_mean_without_shapes():
    x = normal(4, 5)
    each = powers(Layers(), x, like=True)[0]["block/Dense_0/kernel"]
    shared = powers(Layers(), x, like=False)[0]["block/Dense_0/kernel"]
    assert shared.shape == ()
    np.testing.assert_allclose(shared, jnp.mean(each), rtol=1e-6)


def test_a_bias_takes_its_layer_s_power_in_its_own_rank():
    x = normal(4, 5)
    found, _, params = powers(Layers(), x, like=True, scope="layer")
    assert params["block"]["Dense_0"]["bias"].shape == (3, 5)
    bias = found["block/Dense_0/bias"]
    assert bias.shape == (3, 1)
    np.testing.assert_array_equal(bias.ravel(), found["block/Dense_0/kernel"].ravel())


@pytest.mark.parametrize("length", [1, 5])
def test_a_stack_may_have_one_layer_or_as_many_as_features(length):
    found, *_ = powers(Layers(length), normal(4, 5), like=True, scope="layer")
    shapes = {name: power.shape for name, power in found.items()}
    kernel, bias = ((5, 1, 1), (5, 1)) if length == 5 else ((), ())
    assert shapes == {"block/Dense_0/kernel": kernel, "block/Dense_0/bias": bias}


def test_norm_layers_of_a_stack_keep_one_power_each():
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.Dense(5)(nn.LayerNorm()(x)), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            block = nn.scan(Normed, AXES, split_rngs=SPLIT, length=3)
            return block(name="block")(x, None)[0]

    found, *_ = powers(Net(), normal(4, 5), like=True, scope="layer", norm_layers=True)
    shapes = {name: power.shape for name, power in found.items()}
    assert shapes == {
        "block/Dense_0/kernel": (3, 1, 1),
        "block/Dense_0/bias": (3, 1),
        "block/LayerNorm_0/scale": (3, 1),
        "block/LayerNorm_0/bias": (3, 1),
    }


def test_parameters_stacked_on_another_axis_keep_one_power_each():
    axes = {"params": 1, "intermediates": 1}
    layer = nn.vmap(nn.Dense, variable_axes=axes, split_rngs=SPLIT)(4)
    x = normal(3, 2, 5)
    found, *_ = powers(layer, x, like=True, scope="layer")
    assert found["kernel"].shape == (1, 3, 1)
    assert found["bias"].shape == (1, 3)
    np.testing.assert_allclose(
        found["kernel"].ravel(), [input_norm(z) for z in x], rtol=1e-6
    )


def test_a_vmapped_layer_keeps_one_power_each():
    layer = nn.vmap(nn.Conv, variable_axes=AXES, split_rngs=SPLIT)(4, (3, 3))
    x = normal(3, 2, 6, 6, 5)
    found, *_ = powers(layer, x, like=True)
    assert found["kernel"].shape == (3, 1, 1, 1, 1)
    expected = [input_norm(z, axis=(1, 2, 3)) for z in x]
    np.testing.assert_allclose(found["kernel"].ravel(), expected, rtol=1e-6)


def test_kernels_of_a_batch_keep_one_power_each():
    layer = nn.DenseGeneral(4, batch_dims=(0,))
    x = normal(3, 2, 5)
    found, *_ = powers(layer, x, like=True, scope="layer")
    assert found["kernel"].shape == (3, 1, 1)
    assert found["bias"].shape == (3, 1)


@pytest.mark.parametrize(
    "cell",
    [
        nn.SimpleCell(4),
        nn.GRUCell(4),
        nn.MGUCell(4),
        nn.LSTMCell(4),
        nn.OptimizedLSTMCell(4),
        nn.ConvLSTMCell(4, (3,)),
    ],
    ids=lambda cell: type(cell).__name__,
)
def test_every_recurrent_cell_averages_over_time(cell):
    x = normal(2, 7, 3, 5) if isinstance(cell, nn.ConvLSTMCell) else normal(2, 7, 5)
    model = nn.RNN(cell)
    found, norms, params = powers(model, x, like=True)
    kernels = {
        "/".join(k.key for k in path)
        for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]
        if path[-1].key == "kernel"
    }
    assert set(found) == kernels
    for leaf in jax.tree.leaves(norms):
        assert leaf.shape[0] == 7
    for name, power in found.items():
        assert power.shape == ()
        if name.split("/")[1].startswith("i"):  # the kernels that multiply the input
            time_axis_first = jnp.moveaxis(x, 1, 0).reshape(-1, *x.shape[2:])
            axis = -1 if x.ndim == 3 else (-2, -1)
            expected = input_norm(time_axis_first, axis=axis)
            np.testing.assert_allclose(power, expected, rtol=1e-5)


def test_a_bidirectional_rnn_and_one_with_its_own_axes_sow():
    x = normal(2, 7, 5)
    model = nn.Bidirectional(nn.RNN(nn.GRUCell(4)), nn.RNN(nn.GRUCell(4)))
    found, *_ = powers(model, x, like=False)
    assert len(found) == 12
    carried = nn.RNN(nn.SimpleCell(4), variable_axes={"intermediates": 0})
    found, norms, _ = powers(carried, x, like=False)
    assert norms["cell"]["i"]["input_norm"][0].shape == (7, 1, 1)


def test_powers_of_stacked_rnns_are_averaged_over_time():
    """Stacked layers, each of them an RNN: (L, T, 1, 1), T averaged."""

    class Recurrent(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.RNN(nn.SimpleCell(5, name="cell"))(x), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            block = nn.scan(Recurrent, AXES, split_rngs=SPLIT, length=3)
            return block(name="block")(x, None)[0]

    found, norms, _ = powers(Net(), normal(2, 7, 5), like=True)
    name = next(name for name in found if name.endswith("i/kernel"))
    assert found[name].shape == (3, 1, 1)
    (sown,) = {leaf.shape for leaf in jax.tree.leaves(norms)}
    assert sown == (3, 7, 1, 1)


class StackedCell(nn.RNNCellBase):
    """A recurrent cell of stacked layers, all of one shape."""

    length: int

    @nn.compact
    def __call__(self, carry, x):
        carry = Layers(self.length, name="layers")(carry + x)
        return carry, carry

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        del rng
        return jnp.zeros(input_shape)

    @property
    def num_feature_axes(self):
        return 1


def test_powers_of_an_rnn_of_stacked_layers_are_averaged_over_time():
    """An RNN whose cell is a stack: (T, L, 1, 1), T averaged."""
    found, norms, _ = powers(nn.RNN(StackedCell(3)), normal(2, 7, 5), like=True)
    (name,) = found
    assert found[name].shape == (3, 1, 1)
    (leaf,) = jax.tree.leaves(norms)
    assert leaf.shape == (7, 3, 1, 1)
    np.testing.assert_allclose(found[name], leaf.mean(axis=0), rtol=1e-6)


def test_as_many_steps_as_layers_is_ambiguous():
    with pytest.raises(
        ValueError, match=r"cell/layers/block/Dense_0/kernel.*\(3, 3, 1"
    ):
        powers(nn.RNN(StackedCell(3)), normal(2, 3, 5), like=True)


def test_a_module_called_twice_averages_its_uses():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Dense(5)
            return layer(10 * layer(x))

    x = normal(4, 5)
    found, norms, _ = powers(Twice(), x, like=True)
    first, second = norms["Dense_0"]["input_norm"]
    np.testing.assert_allclose(first, input_norm(x)[None, None], rtol=1e-6)
    assert second > first
    np.testing.assert_allclose(
        found["Dense_0/kernel"], (first + second).item() / 2, rtol=1e-6
    )


@pytest.mark.parametrize("lift", [nn.remat, nn.jit], ids=["remat", "jit"])
@pytest.mark.parametrize("whole", [True, False], ids=["layer", "block"])
def test_remat_and_jit_change_nothing(lift, whole):
    class Net(nn.Module):
        lifted: bool

        @nn.compact
        def __call__(self, x):
            kind = nn.Dense if whole else Block
            kind = lift(kind) if self.lifted else kind
            options = {"features": 5} if whole else {}
            y = kind(**options, name="layer")(x)
            return y if whole else y[0]

    x = normal(4, 5)
    params = Net(False).init(jax.random.key(0), x)["params"]

    def loss_fn(params, lifted):
        with capture_input_norms():
            y, sown = Net(lifted).apply(
                {"params": params}, x, mutable=["intermediates"]
            )
        return jnp.mean(y**2), sown["intermediates"]

    plain = jax.grad(loss_fn, has_aux=True)(params, False)
    lifted = jax.grad(loss_fn, has_aux=True)(params, True)
    assert jax.tree.structure(plain) == jax.tree.structure(lifted)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), plain, lifted)


def test_vmap_over_seeds_equals_separate_runs():
    model, x = nn.Dense(3), normal(4, 5)
    tx = scale_by_input_power()

    def train(key):
        params = model.init(key, x)["params"]
        with capture_input_norms():
            _, sown = model.apply({"params": params}, x, mutable=["intermediates"])
        state = tx.init(params)
        updates, state = tx.update(params, state, input_norms=sown["intermediates"])
        return updates, state

    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.vmap(train)(keys)
    alone = [train(key) for key in keys]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-6), together, stacked)
