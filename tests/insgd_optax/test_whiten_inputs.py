"""Optimizers in whitened coordinates: special cases, a reference, an invariance."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from insgd_optax import (
    InputCovariance,
    capture_input_covariances,
    covariance_condition_numbers,
    covariance_cosines,
    input_covariance_shapes,
    scale_by_input_covariance,
    whiten_inputs,
)

from .references.input_covariance_reference import Reference


def sown_of(rows):
    """The value that a layer with a (d, m) kernel sows for these input vectors."""
    d = rows.shape[1]
    product = jnp.asarray(rows.T @ rows).reshape(d, 1, d, 1)
    return {
        "input_covariance": (
            InputCovariance((product,), jnp.asarray(len(rows), product.dtype)),
        )
    }


def whitened_identity(**options):
    return whiten_inputs(optax.identity(), **options)


def root_of(matrix):
    """The symmetric square root, by eigenvalues."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values)) @ vectors.T


class Net(nn.Module):
    """Layers of each form: whole, grouped, Kronecker (beyond max_dim) and blocks."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (2, 2), param_dtype=x.dtype)(x)
        x = nn.Conv(4, (3, 3), feature_group_count=2, param_dtype=x.dtype)(x)
        x = nn.Conv(2, (3, 3), param_dtype=x.dtype)(x)
        return nn.Dense(3, param_dtype=x.dtype)(x.reshape(len(x), -1))


@pytest.mark.parametrize("preserve_norm", [True, False])
def test_the_whitened_identity_is_scale_by_input_covariance(x64, preserve_norm):
    x = jax.random.normal(jax.random.key(0), (16, 4, 4, 3))
    params = jax.jit(Net().init)(jax.random.key(1), x)["params"]
    grads = jax.tree.map(lambda w: jnp.cos(jnp.arange(w.size)).reshape(w.shape), params)
    with capture_input_covariances(max_dim=20):
        _, sown = jax.jit(
            lambda: Net().apply({"params": params}, x, mutable=["intermediates"])
        )()
        like = input_covariance_shapes(Net(), jax.random.key(0), x)
    options = {"preserve_norm": preserve_norm, "input_covariances_like": like}
    updates, conditions = [], []
    for tx in (
        whiten_inputs(optax.identity(), damping=0.1, **options),
        scale_by_input_covariance(damping=0.1, **options),
    ):
        state = tx.init(params)
        update, state = jax.jit(tx.update)(grads, state, input_covariances=sown)
        updates.append(update)
        conditions.append(covariance_condition_numbers(state))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), *updates
    )
    for name, condition in conditions[0].items():  # By power iteration.
        np.testing.assert_allclose(condition, conditions[1][name], rtol=1e-2)


@pytest.mark.parametrize("preserve_norm", [True, False])
def test_whitened_adam_matches_the_reference(x64, preserve_norm):
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(rng.normal(size=(5, 3))), "bias": jnp.ones(3)}
    tx = whiten_inputs(
        optax.scale_by_adam(), 0.5, damping=0.1, eps=1e-3, preserve_norm=preserve_norm
    )
    reference = Reference(5, decay=0.5, damping=0.1, eps=1e-3, preserve_norm=False)
    adam = optax.scale_by_adam()
    state, adam_state = tx.init(params), adam.init(params)
    update = jax.jit(tx.update)

    def kept(new, old):
        return new * (np.linalg.norm(old) / np.linalg.norm(new) if preserve_norm else 1)

    for step in range(4):
        captured = step != 2
        rows = rng.normal(size=(20, 5)) * [9, 3, 1, 1, 0.1]
        g = {"kernel": rng.normal(size=(5, 3)), "bias": rng.normal(size=3)}
        sown = sown_of(rows if captured else np.zeros((0, 5)))
        updates, state = update(g, state, params, input_covariances=sown)

        reference.update(g["kernel"], rows if captured else None)
        root = root_of(reference.inverse)
        white = {**g, "kernel": kept(root @ g["kernel"], g["kernel"])}
        inner, adam_state = adam.update(white, adam_state)
        expected = kept(root @ inner["kernel"], inner["kernel"])
        np.testing.assert_allclose(updates["kernel"], expected, rtol=1e-9)
        np.testing.assert_allclose(updates["bias"], inner["bias"], rtol=1e-12)
        cosine = np.sum(updates["kernel"] * inner["kernel"]) / (
            np.linalg.norm(updates["kernel"]) * np.linalg.norm(inner["kernel"])
        )
        np.testing.assert_allclose(covariance_cosines(state)["kernel"], cosine)


def orthogonalized():
    """Muon's direction without momentum, exactly: U V^T of G = U S V^T."""

    def one(g):
        u, _, v = jnp.linalg.svd(g, full_matrices=False)
        return u @ v

    return optax.stateless(lambda updates, _: jax.tree.map(one, updates))


def test_muon_without_momentum_is_invariant_to_a_linear_map_of_the_input(x64):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 4)) * [9, 3, 1, 0.1]
    y = np.sin(x @ rng.normal(size=(4, 3)))
    w = rng.normal(size=(4, 3))
    mixing = rng.normal(size=(4, 4))
    model = nn.Dense(3, use_bias=False, param_dtype=jnp.float64)
    tx = whiten_inputs(orthogonalized(), damping=0.0, eps=0.0, preserve_norm=False)
    plain = optax.with_extra_args_support(orthogonalized())

    def outputs(tx, x, w):
        params = {"kernel": jnp.asarray(w)}
        state = tx.init(params)

        @jax.jit
        def step(params, state):
            def loss_fn(params):
                with capture_input_covariances():
                    out, sown = model.apply(
                        {"params": params}, x, mutable=["intermediates"]
                    )
                return jnp.mean((out - y) ** 2), sown

            grads, sown = jax.grad(loss_fn, has_aux=True)(params)
            updates, state_ = tx.update(grads, state, params, input_covariances=sown)
            return jax.tree.map(lambda w, u: w - 0.1 * u, params, updates), state_

        for _ in range(5):
            params, state = step(params, state)
        return x @ params["kernel"]

    mixed = x @ mixing, np.linalg.solve(mixing, w)
    np.testing.assert_allclose(outputs(tx, *mixed), outputs(tx, x, w), rtol=1e-7)
    assert not np.allclose(outputs(plain, *mixed), outputs(plain, x, w), rtol=1e-2)


def test_a_singular_covariance_keeps_the_last_root():
    params = {"kernel": jnp.ones((3, 2))}
    tx = whiten_inputs(optax.identity(), damping=0.0, eps=0.0)
    state = tx.init(params)
    updates, state = tx.update(
        params, state, input_covariances=sown_of(np.ones((4, 3), np.float32))
    )
    np.testing.assert_allclose(updates["kernel"], 1, rtol=1e-6)
    assert state.covariance.failures == 1
    rows = np.diag([1.0, 2.0, 3.0]).astype(np.float32)
    updates, state = tx.update(params, state, input_covariances=sown_of(rows))
    assert state.covariance.failures == 1
    assert not np.allclose(updates["kernel"], updates["kernel"][:1])


@pytest.mark.parametrize("make", [scale_by_input_covariance, whitened_identity])
def test_the_direction_is_right_at_all_scales_of_inputs_and_damping(make):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(20, 4)) * [4.0, 2.0, 1.0, 1.0]
    grad = rng.normal(size=(4, 2))

    @jax.jit
    def step(damping, eps, rows):
        params, results = {"kernel": jnp.asarray(grad, jnp.float32)}, []
        for preserve_norm in (True, False):
            tx = make(damping=damping, eps=eps, preserve_norm=preserve_norm)
            state = tx.init(params)
            updates, state = tx.update(params, state, input_covariances=sown_of(rows))
            failures = getattr(state, "covariance", state).failures
            condition = covariance_condition_numbers(state)["kernel"]
            results.append((updates["kernel"], failures, condition))
        return results

    for damping, eps, size in [
        (1.0, 1e-8, 3e17),  # D is near the smallest number, and A near the largest
        (1e10, 1e-8, 1e15),  # D is below the smallest number
        (1e30, 1e-8, 1e5),
        (1e38, 1e-8, 1.0),
        (1.0, 1e-8, 1e-14),  # eps is far larger than the eigenvalues of A
        (1.0, 10.0, 1e-19),
        (0.0, 0.0, 1e-16),  # D is near the largest number
    ]:
        a = (rows * size).T @ (rows * size) / 20
        d = np.linalg.inv(a + (damping * np.trace(a) / 4 + eps) * np.eye(4))
        plain = d @ grad
        kept = plain / np.linalg.norm(plain) * np.linalg.norm(grad)
        results = step(damping, eps, (rows * size).astype(np.float32))
        for wanted, (update, failures, condition) in zip(
            (kept, plain), results, strict=True
        ):
            assert failures == 0
            largest = np.abs(wanted).max()
            if 1e-30 < largest < 1e30:
                np.testing.assert_allclose(update, wanted, atol=1e-4 * largest)
            else:
                assert jnp.isfinite(update).all()
                assert (jnp.abs(update).max() < 1e-30) == (largest < 1e-30)
            values = np.linalg.eigvalsh(d)
            np.testing.assert_allclose(condition, values[-1] / values[0], rtol=0.05)


def test_the_inner_transformation_gets_every_keyword_and_the_parameters():
    seen = {}

    def update(updates, state, params=None, **keywords):
        seen.update(keywords, params=params)
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
    params = {"kernel": jnp.ones((3, 2), jnp.bfloat16)}
    tx = whiten_inputs(inner)
    sown = sown_of(np.eye(3, dtype=np.float32))
    updates, _ = tx.update(
        params, tx.init(params), params, input_covariances=sown, value=2.0
    )
    assert seen == {"params": params, "input_covariances": sown, "value": 2.0}
    assert updates["kernel"].dtype == jnp.bfloat16


def test_errors_name_the_wrong_argument():
    params = {"kernel": jnp.ones((3, 2))}
    tx = whiten_inputs(optax.scale_by_adam())
    with pytest.raises(ValueError, match="input_covariances is missing"):
        tx.update(params, tx.init(params), params)
    with pytest.raises(ValueError, match="decay=1.0"):
        whiten_inputs(optax.identity(), 1.0)
    for inner, name in [(optax.adam, "adam"), (0.1, "0.1"), (None, "None")]:
        with pytest.raises(TypeError, match=f"whiten_inputs takes.*not {name}"):
            whiten_inputs(inner)
    with pytest.raises(ValueError, match="whiten_inputs"):
        covariance_cosines(optax.sgd(0.1).init(params))
