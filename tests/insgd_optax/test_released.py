"""The released code's variant against a plain NumPy reference."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from insgd_optax import capture_input_norms, insgd
from insgd_optax._released import capture_released_norms, insgd_as_released
from tests.insgd_optax.references import released_reference as reference


def array(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(2.0, 3.0, size=shape)


def captured(model, x, p=2, tokens="samples"):
    """The values that one call of a Linen model sows."""

    @jax.jit
    def sow(x):
        with capture_released_norms(p, tokens):
            variables = model.init(jax.random.key(0), x)
            return model.apply(variables, x, mutable=["intermediates"])[1]

    return sow(x)["intermediates"]


def released_norm(model, x, **options):
    (norm,) = captured(model, x, **options)["released_input_norm"]
    return norm


# The statistics


@pytest.mark.parametrize("p", [1, 2, 3])
def test_dense_power_matches_the_reference(x64, p):
    x = array(6, 5)
    norm = released_norm(nn.Dense(3), x, p=p)
    np.testing.assert_allclose(norm, [[reference.dense_power(x, p)]], rtol=1e-12)


@pytest.mark.parametrize("p", [1, 2])
def test_both_treatments_of_tokens_match_the_reference(x64, p):
    x = array(4, 7, 5)
    samples = released_norm(nn.Dense(3), x, p=p, tokens="samples")
    expected = reference.dense_power(x.reshape(28, 5), p)
    np.testing.assert_allclose(samples, [[expected]], rtol=1e-12)
    as_is = released_norm(nn.Dense(3), x, p=p, tokens="as_is")
    expected = reference.tokens_as_is_power(x, p)
    np.testing.assert_allclose(as_is, [[expected]], rtol=1e-12)
    assert abs(as_is - samples).item() > 0.01


def test_without_tokens_both_treatments_agree():
    x = array(6, 5)
    samples, as_is = (
        released_norm(nn.Dense(3), x, tokens=tokens) for tokens in ("samples", "as_is")
    )
    assert samples == as_is


@pytest.mark.parametrize("tokens", ["samples", "as_is"])
def test_attention_sows_the_norms_of_linear_layers_on_tokens(x64, tokens):
    x = array(3, 5, 8)
    attention = nn.MultiHeadDotProductAttention(num_heads=2)
    norms = captured(attention, x, tokens=tokens)
    linear = released_norm(nn.Dense(1), x, tokens=tokens)
    for name in ("query", "key", "value"):
        (norm,) = norms[name]["released_input_norm"]
        assert norm.shape == (1, 1, 1)
        np.testing.assert_allclose(norm.item(), linear.item(), rtol=1e-12)
    # The output layer takes (batch, tokens, heads, features of a head) as one vector.
    heads = x.reshape(3, 5, 2, 4)
    merged = released_norm(nn.DenseGeneral(8, axis=(-2, -1)), heads, tokens=tokens)
    np.testing.assert_allclose(merged.item(), linear.item(), rtol=1e-12)
    assert norms["out"]["released_input_norm"][0].shape == (1, 1, 1)


def test_batched_kernels_have_one_power_each(x64):
    x = array(2, 6, 5)
    norm = released_norm(nn.DenseGeneral(3, batch_dims=0), x)
    expected = [reference.dense_power(each, 2) for each in x]
    assert norm.shape == (2, 1, 1)
    np.testing.assert_allclose(norm.ravel(), expected, rtol=1e-12)


@pytest.mark.parametrize("groups, p", [(1, 2), (2, 1), (4, 2)])
def test_conv_powers_match_the_reference(x64, groups, p):
    x = array(3, 5, 6, 4)
    layer = nn.Conv(8, (3, 3), strides=2, feature_group_count=groups)
    powers = reference.conv_powers(x, p)
    norm = released_norm(layer, x, p=p)
    assert norm.shape == (1, 1, 4 // groups, 1 if groups == 1 else 8)
    # The channel of each kernel entry, according to the reference.
    expected = reference.conv_factors((3, 3, 4 // groups, 8), powers, groups, 0.9)
    factors = reference.kappa(0.9) / np.maximum(np.log(norm), 0.01)
    factors = np.broadcast_to(factors, expected.shape)
    np.testing.assert_allclose(factors, expected, rtol=1e-12)


def test_a_grouped_kernel_entry_has_the_power_of_its_channel(x64):
    # By differentiation, without this library's or the reference's bookkeeping.
    x = array(2, 4, 4, 6)
    layer = nn.Conv(9, (1, 1), feature_group_count=3, use_bias=False)
    kernel = np.ones((1, 1, 2, 9))
    weights = 1.0 + np.arange(9)

    def output(x, kernel):
        return layer.apply({"params": {"kernel": kernel}}, x)[0, 0, 0] @ weights

    touched = jax.jacobian(jax.grad(output, argnums=1))(x, kernel)[0, 0, :, :, 0, 0, 0]
    channel = np.argmax(np.abs(touched), axis=-1)
    powers = reference.conv_powers(x, 2)
    norm = released_norm(layer, x)
    np.testing.assert_allclose(norm[0, 0], powers[channel], rtol=1e-12)


@pytest.mark.parametrize("transpose_kernel", [False, True])
def test_transposed_convolutions_match_the_reference(x64, transpose_kernel):
    x = array(3, 5, 4, 4)
    layer = nn.ConvTranspose(2, (3, 3), transpose_kernel=transpose_kernel)
    norm = released_norm(layer, x)
    assert norm.shape == ((1, 1, 1, 4) if transpose_kernel else (1, 1, 4, 1))
    np.testing.assert_allclose(norm.ravel(), reference.conv_powers(x, 2), rtol=1e-12)


def test_a_small_spread_is_not_amplified(x64):
    x = 5.0 + 1e-4 * array(3, 4, 4, 2)
    norm = released_norm(nn.Conv(1, (3, 3)), x)
    np.testing.assert_allclose(norm.ravel(), reference.conv_powers(x, 2), rtol=1e-6)
    assert norm.max() < 0.1


def test_single_positions_and_features_count_as_zero():
    assert released_norm(nn.Conv(2, (1, 1)), array(3, 1, 1, 4)).sum() == 0
    power = released_norm(nn.Dense(2), array(3, 1)).item()
    np.testing.assert_allclose(power, 0.1, rtol=1e-6)
    assert reference.dense_power(array(3, 1), 2) == pytest.approx(0.1)


def test_the_power_hardly_depends_on_the_input():
    for scale in (0.1, 10.0):
        x = scale * array(8, 6, 6, 3)
        np.testing.assert_allclose(released_norm(nn.Conv(1, (3, 3)), x), 35, rtol=1e-3)
        norm = released_norm(nn.Dense(1), x.reshape(8, -1)).item()
        assert norm == pytest.approx(6 * 6 * 3 - 0.9, rel=1e-3)


def test_norms_are_float32_and_have_no_gradient():
    x = jnp.asarray(array(4, 300), jnp.bfloat16)
    norm = released_norm(nn.Dense(2, dtype=jnp.bfloat16), x)
    assert norm.dtype == jnp.float32
    assert norm.item() == pytest.approx(299.1, rel=1e-4)
    gradient = jax.grad(lambda x: released_norm(nn.Dense(2), x).sum())(
        jnp.asarray(array(4, 5), jnp.float32)
    )
    np.testing.assert_array_equal(gradient, np.zeros((4, 5)))


def test_norms_of_recurrent_cells_are_stacked_over_time():
    rnn, x = nn.RNN(nn.OptimizedLSTMCell(4)), jnp.asarray(array(2, 5, 3))
    norms = captured(rnn, x)
    leaves = jax.tree.leaves(norms)
    assert leaves and all(leaf.shape == (5, 1, 1) for leaf in leaves)
    params = jax.jit(rnn.init)(jax.random.key(0), x)["params"]
    tx = insgd_as_released(0.1)
    jax.eval_shape(tx.update, params, tx.init(params), params, input_norms=norms)


# The steps


LAYERS = {
    "dense": (nn.Dense(3), (6, 5), {}),
    "dense-l1": (nn.Dense(3), (6, 5), {"p": 1}),
    "samples": (nn.Dense(3), (4, 7, 5), {"tokens": "samples"}),
    "as_is": (nn.Dense(3), (4, 7, 5), {"tokens": "as_is"}),
    "conv": (nn.Conv(4, (3, 3)), (3, 5, 4, 2), {}),
    "conv-l1": (nn.Conv(4, (3, 3)), (3, 5, 4, 2), {"p": 1}),
    "grouped": (nn.Conv(6, (3, 3), feature_group_count=2), (3, 5, 4, 4), {}),
    "depthwise": (nn.Conv(4, (3, 3), feature_group_count=4), (3, 5, 4, 4), {}),
}


def reference_factors(layer, kernel_shape, x, momentum, *, p=2, tokens="samples"):
    if isinstance(layer, nn.Conv):
        groups, powers = layer.feature_group_count, reference.conv_powers(x, p)
        return reference.conv_factors(kernel_shape, powers, groups, momentum)
    if tokens == "as_is":
        power = reference.tokens_as_is_power(x, p)
    else:
        power = reference.dense_power(x.reshape(-1, x.shape[-1]), p)
    return reference.dense_factors(kernel_shape, power, momentum)


OPTIONS = {
    "momentum": {"momentum": 0.9, "nesterov": False, "weight_decay": 0.0},
    "decay": {"momentum": 0.0, "nesterov": False, "weight_decay": 1e-2},
    "nesterov": {"momentum": 0.8, "nesterov": True, "weight_decay": 1e-2},
}


@pytest.mark.parametrize(
    "name, options",
    [(name, "nesterov") for name in LAYERS]
    + [
        (name, plain)
        for name in ("dense", "grouped")
        for plain in ("momentum", "decay")
    ],
)
def test_five_steps_match_the_reference(x64, name, options):
    (layer, shape, capture), options = LAYERS[name], OPTIONS[options]
    learning_rate = 1e-3
    tx = insgd_as_released(learning_rate, **options)
    ours = layer.init(jax.random.key(1), array(*shape))["params"]
    ours = jax.tree.map(lambda w: jnp.asarray(w, float) + 0.1, ours)
    expected = jax.tree.map(np.asarray, ours)
    buffers = dict.fromkeys(expected)
    opt_state = tx.init(ours)

    def loss_fn(params, x):
        with capture_released_norms(**capture):
            y, sown = layer.apply({"params": params}, x, mutable=["intermediates"])
        return jnp.mean(y**2), sown["intermediates"]

    grad_fn, update = jax.jit(jax.grad(loss_fn, has_aux=True)), jax.jit(tx.update)
    for seed in range(5):
        x = array(*shape, seed=seed)
        x[..., 0] = 0.0  # a channel, or a feature, that is zero over the whole batch
        grads, norms = grad_fn(ours, x)
        updates, opt_state = update(grads, opt_state, ours, input_norms=norms)
        ours = optax.apply_updates(ours, updates)

        grads, _ = grad_fn(expected, x)
        for key, w in expected.items():
            factors = 1.0
            if key == "kernel":
                factors = reference_factors(
                    layer, w.shape, x, options["momentum"], **capture
                )
            expected[key], buffers[key] = reference.step(
                w,
                buffers[key],
                np.asarray(grads[key]),
                factors,
                learning_rate=learning_rate,
                **options,
            )
    for key, w in expected.items():
        np.testing.assert_allclose(ours[key], w, rtol=1e-10, atol=1e-12)


def test_kappa_scales_kernels_but_not_biases_and_scales():
    assert reference.kappa(0.9) == pytest.approx(3.162269, abs=5e-7)
    params = {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1), "scale": jnp.ones(1)}
    norms = {"released_input_norm": (jnp.full((1, 1), jnp.e),)}
    tx = insgd_as_released(1.0, momentum=0.9)
    updates, _ = tx.update(params, tx.init(params), input_norms=norms)
    np.testing.assert_allclose(updates["kernel"], np.full((2, 1), -3.162269), rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], [-1.0])
    np.testing.assert_array_equal(updates["scale"], [-1.0])


def test_a_zero_channel_is_scaled_by_kappa_over_the_floor():
    x = array(3, 5, 4, 2)
    x[..., 1] = 0.0
    params = {"kernel": jnp.ones((3, 3, 2, 4))}
    tx = insgd_as_released(1.0)
    norms = captured(nn.Conv(4, (3, 3)), x)
    updates, _ = tx.update(params, tx.init(params), input_norms=norms)
    factor = -reference.kappa(0.9) / 0.01
    np.testing.assert_allclose(updates["kernel"][:, :, 1], factor, rtol=1e-6)
    assert np.all(-np.asarray(updates["kernel"][:, :, 0]) < 2)


@pytest.mark.parametrize("shared", [False, True])
def test_powers_of_scanned_layers_are_stacked_or_averaged(shared):
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.Conv(4, (3, 3))(x), None

    axes = {"intermediates": 0} if shared else {"intermediates": 0, "params": 0}
    model = nn.scan(
        Block,
        variable_axes=axes,
        variable_broadcast="params" if shared else False,
        split_rngs={"params": not shared},
        length=2,
    )()
    x = jnp.asarray(array(3, 5, 5, 4), jnp.float32)
    params = model.init(jax.random.key(0), x, None)["params"]
    with capture_released_norms():
        _, sown = model.apply({"params": params}, x, None, mutable=["intermediates"])
    norms = sown["intermediates"]
    (stacked,) = norms["Conv_0"]["released_input_norm"]
    assert stacked.shape == (2, 1, 1, 4, 1)
    tx = insgd_as_released(1.0)
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = tx.update(ones, tx.init(params), params, input_norms=norms)
    power = stacked.mean(axis=0) if shared else stacked
    expected = np.broadcast_to(
        -reference.kappa(0.9) / np.log(power), updates["Conv_0"]["kernel"].shape
    )
    np.testing.assert_allclose(updates["Conv_0"]["kernel"], expected, rtol=1e-6)


def test_a_layer_used_twice_takes_the_mean_of_both_norms():
    params = {"kernel": jnp.ones((2, 1))}
    norms = {"released_input_norm": (jnp.full((1, 1), 10.0), jnp.full((1, 1), 30.0))}
    tx = insgd_as_released(1.0, momentum=0.0)
    updates, _ = tx.update(params, tx.init(params), input_norms=norms)
    np.testing.assert_allclose(updates["kernel"], -1 / np.log([[20], [20]]), rtol=1e-5)


# Inside optax, and under jax


NORMS = {"Dense_0": {"released_input_norm": (jnp.full((1, 1), 100.0),)}}


def wrapped(name):
    tx = insgd_as_released(0.1, weight_decay=1e-3)
    return {
        "plain": lambda: tx,
        "schedule": lambda: insgd_as_released(
            optax.constant_schedule(0.1), weight_decay=1e-3
        ),
        "inject_hyperparams": lambda: optax.inject_hyperparams(insgd_as_released)(
            learning_rate=0.1, momentum=0.9, weight_decay=1e-3
        ),
        "masked": lambda: optax.masked(tx, True),
        "partition": lambda: optax.partition({"all": tx}, "all"),
        "apply_if_finite": lambda: optax.apply_if_finite(tx, 3),
    }[name]()


@pytest.mark.parametrize(
    "name",
    ["schedule", "inject_hyperparams", "masked", "partition", "apply_if_finite"],
)
def test_wrappers_give_the_same_steps_under_jit_and_scan(name):
    params = {"Dense_0": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(params, state, params, input_norms=NORMS)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=3)
        return params

    tx = wrapped("plain")
    expected = train(params)
    train.clear_cache()
    tx = wrapped(name)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        train(params),
        expected,
    )


def test_updates_keep_their_dtype():
    params = {"Dense_0": {"kernel": jnp.ones((3, 2), jnp.bfloat16)}}
    tx = insgd_as_released(0.1)
    updates, _ = tx.update(params, tx.init(params), input_norms=NORMS)
    assert updates["Dense_0"]["kernel"].dtype == jnp.bfloat16


# The two captures are not confused


def test_both_captures_may_be_open_at_once():
    layer, x = nn.Dense(1), array(3, 5)
    variables = layer.init(jax.random.key(0), x)

    def sown():
        _, sown = jax.eval_shape(
            lambda: layer.apply(variables, x, mutable=["intermediates"])
        )
        return set(sown["intermediates"])

    with capture_released_norms():
        with capture_input_norms():
            assert sown() == {"input_norm", "released_input_norm"}
        assert sown() == {"released_input_norm"}
    with capture_input_norms(), capture_released_norms():
        assert sown() == {"input_norm", "released_input_norm"}


def test_the_other_capture_s_norms_are_an_error_that_says_so():
    x = array(3, 5)
    params = nn.Dense(1).init(jax.random.key(0), x)["params"]
    with capture_input_norms():
        _, sown = nn.Dense(1).apply({"params": params}, x, mutable=["intermediates"])
    tx = insgd_as_released(0.1)
    with pytest.raises(ValueError, match=r"(?s)  kernel\n.*paper's.*capture_released"):
        tx.update(params, tx.init(params), input_norms=sown["intermediates"])
    tx = insgd(0.1)
    with pytest.raises(ValueError, match=r"(?s)  kernel\n.*capture_released_norms"):
        norms = captured(nn.Dense(1), x)
        tx.update(params, tx.init(params), input_norms=norms)


def test_errors_say_what_to_do():
    params = {"Dense_0": {"kernel": jnp.ones((3, 2))}, "own": {"kernel": jnp.ones(2)}}
    tx = insgd_as_released(0.1)
    with pytest.raises(ValueError, match=r"input_norms is missing.*MultiSteps"):
        tx.update(params, tx.init(params))
    with pytest.raises(ValueError, match=r"(?s)  own/kernel\nOnly Dense"):
        tx.update(params, tx.init(params), input_norms=NORMS)
    with pytest.raises(ValueError, match=r'(?s)named "kernel".*  a/embedding'):
        tx.init({"a": {"embedding": jnp.ones((2, 2))}})
    bad = {**NORMS, "own": {"released_input_norm": (jnp.ones((3, 5)),)}}
    with pytest.raises(ValueError, match="of own/kernel does not fit"):
        tx.update(params, tx.init(params), input_norms=bad)
    for options in ({"p": 0.5}, {"p": jnp.inf}, {"tokens": "as"}):
        (name,) = options
        with pytest.raises(ValueError, match=f"{name}="):
            captured(nn.Dense(1), array(3, 5), **options)
    for name in ("learning_rate", "momentum", "weight_decay"):
        with pytest.raises(ValueError, match=f"{name}.*=-1"):
            insgd_as_released(**{"learning_rate": 0.1, name: -1})


def test_masked_kernels_do_not_count_as_kernels():
    params = {"d": {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)}}
    mask = {"d": {"kernel": False, "bias": True}}
    tx = optax.masked(insgd_as_released(0.1), mask)
    with pytest.raises(ValueError, match=r'named "kernel"(.|\n)*d/bias$'):
        tx.init(params)
