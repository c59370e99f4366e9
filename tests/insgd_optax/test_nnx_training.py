"""NNX models train like their Linen counterparts, under every transform."""

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import insgd_optax
from insgd_optax import input_powers, insgd, scale_by_input_power
from insgd_optax.nnx import capture_input_norms, input_norm_shapes
from tests.insgd_optax.nnx_models import CNN, MLP, Block, array, captured, rngs


class LinenMLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="second")(jnp.tanh(nn.Dense(8, name="first")(x)))


class LinenCNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), name="conv1")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=False, name="norm")(x))
        conv2 = nn.Conv(8, (3, 3), strides=2, feature_group_count=4, name="conv2")
        return nn.Dense(3, name="linear")(nn.relu(conv2(x)).mean(axis=(1, 2)))


def cross_entropy(logits, y):
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def train_linen(model, variables, batches, tx, **options):
    params, rest = variables["params"], {**variables, "params": None}
    opt_state = tx.init(params)

    @jax.jit
    def step(params, rest, opt_state, x, y):
        def loss_fn(params):
            with insgd_optax.capture_input_norms(**options):
                logits, mutated = model.apply(
                    {**rest, "params": params},
                    x,
                    mutable=["intermediates", "batch_stats"],
                )
            return cross_entropy(logits, y), mutated

        grads, mutated = jax.grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(
            grads, opt_state, params, input_norms=mutated.pop("intermediates")
        )
        return optax.apply_updates(params, updates), {**rest, **mutated}, opt_state

    for x, y in batches:
        params, rest, opt_state = step(params, rest, opt_state, x, y)
    return params, input_powers(opt_state)


def train_nnx(model, batches, tx, **options):
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    traces = 0

    @nnx.jit
    def step(model, optimizer, x, y):
        nonlocal traces
        traces += 1

        def loss_fn(model):
            with capture_input_norms(**options):
                logits, norms = nnx.capture(model, nnx.Intermediate)(x)
            return cross_entropy(logits, y), norms

        grads, norms = nnx.grad(loss_fn, has_aux=True)(model)
        optimizer.update(model, grads, input_norms=norms)

    before = nnx.graphdef(model)
    for x, y in batches:
        step(model, optimizer, x, y)
    assert traces == 1, "the model's graphdef changed from step to step"
    assert nnx.graphdef(model) == before
    return nnx.to_pure_dict(nnx.state(model, nnx.Param)), optimizer


@pytest.mark.parametrize(
    "linen, model, shape, options",
    [
        (LinenMLP(), MLP, (5,), {}),
        (LinenCNN(), CNN, (6, 6, 2), {}),
        (LinenCNN(), CNN, (6, 6, 2), {"p": 1, "conv_input": "patch"}),
        (LinenCNN(), CNN, (6, 6, 2), {"norm_layers": True}),
    ],
    ids=["mlp", "cnn", "cnn-l1-patch", "cnn-norm-layers"],
)
def test_ten_steps_give_the_parameters_of_linen(linen, model, shape, options):
    scope = "layer" if "norm_layers" in options else "kernel"
    tx = insgd(0.3, weight_decay=1e-2, nesterov=True, scope=scope)
    y = np.random.default_rng(0).integers(0, 3, (10, 16))
    batches = [(3 * array(16, *shape, seed=i), y[i]) for i in range(10)]
    variables = linen.init(jax.random.key(1), batches[0][0])
    model = model(rngs())
    nnx.update(model, variables["params"])

    expected, linen_powers = train_linen(linen, variables, batches, tx, **options)
    ours, optimizer = train_nnx(model, batches, tx, **options)

    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for (path, a), b in zip(
        jax.tree.leaves_with_path(ours), jax.tree.leaves(expected), strict=True
    ):
        error = np.abs(a - b).max() / np.abs(b).max()
        assert error < 1e-6, (jax.tree_util.keystr(path), error)
    powers = input_powers(optimizer.opt_state)
    assert powers.keys() == linen_powers.keys()
    for name, power in powers.items():
        np.testing.assert_allclose(power, linen_powers[name], rtol=1e-5)


def test_the_state_mirrors_the_parameters():
    model = MLP(rngs())
    tx = insgd(
        0.1,
        weight_decay=1e-4,
        weight_decay_mask=lambda params: jax.tree.map(lambda w: w.ndim > 1, params),
    )
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    powers = input_powers(optimizer.opt_state)
    assert list(powers) == ["first/kernel", "second/kernel"]
    assert all(power == 0 and power.dtype == jnp.float32 for power in powers.values())


def test_frozen_parameters_have_no_power_and_do_not_change():
    model = MLP(rngs())
    wrt = nnx.All(nnx.Param, nnx.PathContains("second"))
    tx = optax.chain(scale_by_input_power(), optax.scale(-1e-2))
    optimizer = nnx.Optimizer(model, tx, wrt=wrt)

    def loss_fn(model):
        with capture_input_norms():
            y, norms = nnx.capture(model, nnx.Intermediate)(array(4, 5))
        return jnp.sum(y**2), norms

    @nnx.jit
    def step(model, optimizer):
        grad = nnx.grad(loss_fn, argnums=nnx.DiffState(0, wrt), has_aux=True)
        grads, norms = grad(model)
        optimizer.update(model, grads, input_norms=norms)

    first = model.first.kernel[...]
    step(model, optimizer)
    assert list(input_powers(optimizer.opt_state)) == ["second/kernel"]
    np.testing.assert_array_equal(model.first.kernel[...], first)


# Transformations


@nnx.split_rngs(splits=3)
@nnx.vmap
def make_blocks(rngs):
    return Block(rngs)


@nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
def scan_blocks(block, x):
    return block(x)


@nnx.vmap(in_axes=(0, None))
def vmap_blocks(block, x):
    return block(x)


class Stack(nnx.Module):
    def __init__(self, rngs, apply):
        self.blocks = make_blocks(rngs)
        self.apply = apply

    def __call__(self, x):
        return self.apply(self.blocks, x)


class Shared(nnx.Module):
    def __init__(self, rngs, apply):
        self.block = Block(rngs)
        self.apply = apply

    def __call__(self, x):
        return self.apply(self.block, x)


def one_block(stack, i):
    block = Block(rngs())
    nnx.update(block, jax.tree.map(lambda w: w[i], nnx.state(stack.blocks)))
    return block


@pytest.mark.parametrize("graph", [True, False], ids=["graph", "tree"])
@pytest.mark.parametrize("apply", [scan_blocks, vmap_blocks], ids=["scan", "vmap"])
def test_stacked_layers_have_one_norm_each(apply, graph):
    stack, x = Stack(rngs(), apply), array(5, 4)
    expected, y = [], x
    for i in range(3):
        (norm,) = captured(one_block(stack, i), y)["linear"]["input_norm"]
        expected.append(norm)
        y = one_block(stack, i)(y) if apply is scan_blocks else x
    with nnx.set_graph_mode(graph):
        norms = nnx.jit(captured)(stack, x)
    (ours,) = norms["blocks"]["linear"]["input_norm"]
    assert ours.shape == (3, 1, 1)
    np.testing.assert_allclose(ours, jnp.stack(expected), rtol=1e-6)


@pytest.mark.parametrize("like", [True, False], ids=["like", "mean"])
def test_stacked_layers_keep_one_power_each_on_request(like):
    stack, x = Stack(rngs(), scan_blocks), array(5, 4)
    with capture_input_norms():
        shapes = input_norm_shapes(stack, jax.ShapeDtypeStruct(x.shape, x.dtype))
    tx = insgd(1.0, momentum=None, input_norms_like=shapes if like else None)
    optimizer = nnx.Optimizer(stack, tx, wrt=nnx.Param)
    (norms,) = captured(stack, x)["blocks"]["linear"]["input_norm"]
    before = stack.blocks.linear.kernel[...]

    def loss_fn(stack):
        with capture_input_norms():
            y, norms = nnx.capture(stack, nnx.Intermediate)(x)
        return 1e3 * jnp.sum(y), norms

    grads, sown = nnx.grad(loss_fn, has_aux=True)(stack)
    optimizer.update(stack, grads, input_norms=sown)
    power = input_powers(optimizer.opt_state)["blocks/linear/kernel"]
    np.testing.assert_allclose(power, norms if like else norms.mean(), rtol=1e-6)
    step = np.asarray(stack.blocks.linear.kernel[...] - before)
    divisor = np.maximum(np.log(norms if like else norms.mean()), 0.01)
    gradient = np.asarray(grads["blocks"]["linear"]["kernel"][...])
    np.testing.assert_allclose(step, -gradient / divisor, rtol=1e-3)


@nnx.remat
def remat_block(block, x):
    return block(x)


@nnx.jit
def jit_block(block, x):
    return block(x)


def cond_block(block, x):
    double = nnx.cond(x.sum() > 1e9, lambda b, x: b(2 * x), lambda b, x: b(x), block, x)
    return double


@pytest.mark.parametrize("apply", [remat_block, jit_block, cond_block])
def test_transformed_calls_sow_the_same_norm(apply):
    shared, x = Shared(rngs(), apply), array(5, 4)
    (expected,) = captured(shared.block, x)["linear"]["input_norm"]
    (ours,) = nnx.jit(captured)(shared, x)["block"]["linear"]["input_norm"]
    np.testing.assert_allclose(ours, expected, rtol=1e-6, strict=True)


OWN_AXIS = nnx.StateAxes({nnx.Intermediate: 0, ...: None})


@nnx.scan(in_axes=(OWN_AXIS, nnx.Carry), out_axes=nnx.Carry, length=3)
def scan_shared(block, x):
    return block(x)


@nnx.vmap(in_axes=(OWN_AXIS, 0))
def vmap_shared(block, x):
    return block(x)


@pytest.mark.parametrize("apply", [scan_shared, vmap_shared], ids=["scan", "vmap"])
def test_uses_of_a_shared_layer_are_averaged(apply):
    shared, x = Shared(rngs(), apply), array(3, 4)
    norms = captured(shared, x)
    (uses,) = norms["block"]["linear"]["input_norm"]
    assert uses.shape == (3, 1, 1)
    params = nnx.state(shared, nnx.Param)
    tx = scale_by_input_power()
    _, state = tx.update(params, tx.init(params), input_norms=norms)
    (power,) = input_powers(state).values()
    np.testing.assert_allclose(power, uses.mean(), rtol=1e-6)


def test_a_layer_used_twice_takes_the_mean_of_both():
    class Twice(Shared):
        def __call__(self, x):
            return self.block(self.block(x))

    model, x = Twice(rngs(), None), array(3, 4)
    with capture_input_norms():
        _, norms = nnx.capture(model, nnx.Intermediate)(x)
    uses = norms["block"]["linear"]["input_norm"].get_value()
    assert len(uses) == 2 and uses[0] != uses[1]
    optimizer = nnx.Optimizer(model, insgd(0.1), wrt=nnx.Param)
    optimizer.update(model, nnx.state(model, nnx.Param), input_norms=norms)
    (power,) = input_powers(optimizer.opt_state).values()
    np.testing.assert_allclose(power, (uses[0] + uses[1]).item() / 2, rtol=1e-6)
    # In NNX's format, where one variable holds both.
    params, tx = nnx.state(model, nnx.Param), insgd(0.1, input_norms_like=norms)
    _, state = tx.update(params, tx.init(params), params, input_norms=norms)
    np.testing.assert_allclose(*input_powers(state).values(), power, rtol=1e-6)


def named(tree, name):
    """The entries of one name in a nested dict, by path."""
    flat = flax.traverse_util.flatten_dict(tree)
    return {path[:-1]: value for path, value in flat.items() if path[-1] == name}


@pytest.mark.parametrize("cell", [nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.GRUCell])
def test_norms_of_an_rnn_are_stacked_over_time(cell):
    rnn, x = nnx.RNN(cell(4, 4, rngs=rngs()), rngs=rngs()), array(2, 5, 4)
    axes = rnn.state_axes
    norms = nnx.jit(captured)(rnn, x)
    assert rnn.state_axes is axes
    norms = named(norms, "input_norm")
    kernels = named(nnx.to_pure_dict(nnx.state(rnn, nnx.Param)), "kernel")
    assert norms.keys() == kernels.keys()
    assert all(norm.shape == (5, 1, 1) for (norm,) in norms.values())
    power = np.square(x).sum(axis=-1).mean(axis=0)  # of the input, over time
    layer = "dense_i" if ("cell", "dense_i") in norms else "ii"
    (norm,) = norms.get(("cell", layer)) or norms["cell", "in_"]
    np.testing.assert_allclose(norm[:, 0, 0], power, rtol=1e-6)


def test_both_directions_of_a_bidirectional_rnn_sow():
    forward, backward = (
        nnx.RNN(nnx.GRUCell(4, 4, rngs=rngs()), rngs=rngs()) for _ in range(2)
    )
    norms = captured(nnx.Bidirectional(forward, backward, rngs=rngs()), array(2, 5, 4))
    assert len(named(norms, "input_norm")) == 4


def test_a_loop_that_cannot_stack_is_an_error():
    def apply(block, x):
        return nnx.fori_loop(
            0, 3, lambda i, both: (both[0], both[0](both[1])), (block, x)
        )[1]

    with pytest.raises((TypeError, ValueError), match="__captures__|structure"):
        captured(Shared(rngs(), apply), array(3, 4))
