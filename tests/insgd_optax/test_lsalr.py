"""LSALR against Eq. 18 in NumPy, and inside optax's wrappers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from insgd_optax._lsalr import lsalr, scale_by_lsalr
from tests.insgd_optax.references import lsalr_reference


def tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {
        "Conv_0": {
            "kernel": scale * rng.standard_normal((3, 3, 2, 4)),
            "bias": 0.1 * scale * rng.standard_normal(4),
        },
        "Dense_0": {"kernel": 1e-4 * scale * rng.standard_normal((8, 2))},
    }


def update(grads, tx=None, params=None):
    tx = tx or scale_by_lsalr()
    return tx.update(grads, tx.init(grads if params is None else params), params)[0]


def assert_trees_close(ours, expected, rtol):
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-15),
        ours,
        expected,
    )


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_updates_match_the_reference(x64, scale):
    grads = tree(0, scale)
    ours = update(jax.tree.map(jnp.asarray, grads))
    assert_trees_close(ours, lsalr_reference.scaled(grads), 1e-12)


def test_steps_with_momentum_and_weight_decay_match_the_reference(x64):
    params = tree(1)
    buffers = jax.tree.map(np.zeros_like, params)
    tx = lsalr(0.1, momentum=0.9, weight_decay=5e-4)
    ours = jax.tree.map(jnp.asarray, params)
    state = tx.init(ours)
    for seed in range(20):
        grads = tree(seed, 0.1)
        updates, state = tx.update(jax.tree.map(jnp.asarray, grads), state, ours)
        ours = optax.apply_updates(ours, updates)
        params, buffers = lsalr_reference.step(params, grads, buffers, 0.1, 0.9, 5e-4)
    assert_trees_close(ours, params, 1e-10)


def test_kernel_and_bias_share_a_factor_and_layers_do_not():
    grads = {
        "a": {"kernel": jnp.array([3.0]), "bias": jnp.array([4.0])},
        "b": {"kernel": jnp.array([0.5])},
    }
    updates = update(grads)
    np.testing.assert_allclose(updates["a"]["kernel"], 3 * (1 + np.log(1.2)), rtol=1e-6)
    np.testing.assert_allclose(updates["a"]["bias"], 4 * (1 + np.log(1.2)), rtol=1e-6)
    np.testing.assert_allclose(updates["b"]["kernel"], 0.5 * (1 + np.log(3)), rtol=1e-6)


def test_a_boxed_kernel_shares_a_factor_with_its_bias():
    plain = {"a": {"kernel": jnp.array([3.0]), "bias": jnp.array([4.0])}}
    boxed = {
        "a": {
            "kernel": nn.Partitioned(plain["a"]["kernel"], (None,)),
            "bias": plain["a"]["bias"],
        }
    }
    updates = update(boxed)
    assert isinstance(updates["a"]["kernel"], nn.Partitioned)
    assert_trees_close(nn.unbox(updates), update(plain), 0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_zero_gradients_stay_zero(dtype):
    updates = update({"a": {"kernel": jnp.zeros(3, dtype)}})
    np.testing.assert_array_equal(updates["a"]["kernel"], np.zeros(3))
    assert updates["a"]["kernel"].dtype == dtype


@pytest.mark.parametrize("size", [1e-37, 1e-30, 1e19, 1e30])
def test_extreme_gradients_stay_finite(size):
    grads = jnp.full(3, size, jnp.float32)
    updates = np.asarray(update({"a": {"kernel": grads}})["a"]["kernel"])
    assert np.all(np.isfinite(updates)) and np.all(updates >= np.asarray(grads))


def test_half_precision_norms_are_summed_in_float32():
    # The squares, 1e-8, are zero in float16.
    updates = update({"a": {"kernel": jnp.full(100, 1e-4, jnp.float16)}})["a"]["kernel"]
    expected = 1e-4 * (1 + np.log(1 + 1e3))  # norm 1e-3
    assert updates.dtype == jnp.float16
    np.testing.assert_allclose(updates.astype(np.float32), expected, rtol=1e-3)


def test_complex_gradients_are_scaled_by_the_factor_of_their_norm():
    grads = {"a": {"kernel": jnp.array([3.0 + 4.0j, 0.0])}}
    np.testing.assert_allclose(
        update(grads)["a"]["kernel"], (3 + 4j) * np.array([1, 0]) * (1 + np.log(1.2)),
        rtol=1e-6,
    )  # fmt: skip


def test_mixed_dtypes_in_a_layer_are_kept(x64):
    grads = {
        "a": {
            "kernel": jnp.array([3.0], jnp.bfloat16),
            "bias": jnp.array([4.0], jnp.float64),
        }
    }
    with jax.numpy_dtype_promotion("strict"):
        updates = update({"a": {"kernel": jnp.array([3.0], jnp.bfloat16)}})
    assert updates["a"]["kernel"].dtype == jnp.bfloat16
    updates = update(grads)
    assert updates["a"]["kernel"].dtype == jnp.bfloat16
    np.testing.assert_allclose(updates["a"]["bias"], 4 * (1 + np.log(1.2)), rtol=1e-12)


def test_complex64_beside_float64_stays_complex(x64):
    kernel = jnp.array([3.0 + 4.0j], jnp.complex64)
    updates = update({"a": {"kernel": kernel, "bias": jnp.zeros(1)}})
    np.testing.assert_allclose(
        updates["a"]["kernel"], (3 + 4j) * (1 + np.log(1.2)), rtol=1e-6
    )


def test_a_bare_array_is_one_layer():
    np.testing.assert_allclose(
        update(jnp.array([0.6, 0.8])), np.array([0.6, 0.8]) * (1 + np.log(2)), rtol=1e-6
    )


def test_masked_weights_are_neither_scaled_nor_counted():
    grads = {"a": {"kernel": jnp.array([1.0]), "bias": jnp.array([5.0])}}
    tx = optax.masked(scale_by_lsalr(), {"a": {"kernel": True, "bias": False}})
    updates = update(grads, tx)
    np.testing.assert_allclose(updates["a"]["kernel"], 1 + np.log(2), rtol=1e-6)
    assert updates["a"]["bias"] == 5.0


def wrapped(name):
    tx = lsalr(0.1, momentum=0.9)
    return {
        "plain": lambda: tx,
        "chain": lambda: optax.chain(optax.identity(), tx),
        "inject_hyperparams": lambda: optax.inject_hyperparams(lsalr)(
            learning_rate=0.1, momentum=0.9
        ),
        "masked": lambda: optax.masked(tx, True),
        "partition": lambda: optax.partition({"all": tx}, "all"),
        "apply_if_finite": lambda: optax.apply_if_finite(tx, 3),
        "MultiSteps": lambda: optax.MultiSteps(tx, 1).gradient_transformation(),
        "schedule": lambda: lsalr(optax.constant_schedule(0.1), momentum=0.9),
    }[name]()


@pytest.mark.parametrize(
    "name",
    [
        "plain", "chain", "inject_hyperparams", "masked", "partition",
        "apply_if_finite", "MultiSteps", "schedule",
    ],
)  # fmt: skip
def test_wrappers_match_the_reference_under_jit_and_scan(name):
    tx = wrapped(name)
    params = jax.tree.map(jnp.float32, tree(0))
    state = tx.init(params)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(params, state, params)  # grad of ||w||^2 / 2
        return (optax.apply_updates(params, updates), state), None

    scanned, _ = jax.jit(lambda c: jax.lax.scan(step, c, length=3))((params, state))
    expected = tree(0)
    buffers = jax.tree.map(np.zeros_like, expected)
    for _ in range(3):
        expected, buffers = lsalr_reference.step(
            expected, expected, buffers, 0.1, 0.9, 0.0
        )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        scanned[0],
        expected,
    )


def test_only_weight_decay_needs_parameters():
    grads = {"a": {"kernel": jnp.ones(2)}}
    update(grads, lsalr(0.1))
    with pytest.raises(ValueError, match="params"):
        update(grads, lsalr(0.1, weight_decay=0.1))


def test_the_weight_decay_mask_and_nesterov_are_applied():
    params = {"a": {"kernel": jnp.ones(1), "bias": jnp.ones(1)}}
    grads = jax.tree.map(jnp.zeros_like, params)
    mask = {"a": {"kernel": True, "bias": False}}
    tx = lsalr(1.0, weight_decay=0.5, weight_decay_mask=mask)
    updates = update(grads, tx, params)
    assert updates["a"]["kernel"] == -0.5 and updates["a"]["bias"] == 0.0
    tx = lsalr(1.0, momentum=0.5, nesterov=True)
    one = {"a": {"kernel": jnp.ones(1)}}
    np.testing.assert_allclose(
        update(one, tx)["a"]["kernel"], -1.5 * (1 + np.log(2)), rtol=1e-6
    )
