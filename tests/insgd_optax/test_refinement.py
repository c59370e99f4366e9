"""Inverses refined from guesses, as on an accelerator."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from insgd_optax import (
    _inverse,
    _refinement,
    capture_input_covariances,
    input_covariance_shapes,
    scale_by_input_covariance,
)


@pytest.fixture
def on_accelerator(monkeypatch):
    """Takes the code of accelerators, compiled for a CPU."""
    monkeypatch.setattr(
        jax.lax, "platform_dependent", lambda *args, cpu, default: default(*args)
    )


def definite(rng, *shape):
    rows = rng.normal(size=(*shape[:-1], 3 * shape[-1]))
    return rows @ np.swapaxes(rows, -1, -2) / shape[-1]


def near(rng, matrices, change):
    """The inverses of similar matrices."""
    other = definite(rng, *matrices.shape)
    return np.linalg.inv((1 - change) * matrices + change * other)


@pytest.mark.parametrize("change", [0.0, 0.05, 0.2])
def test_a_near_guess_is_refined_to_the_inverse(x64, change):
    rng = np.random.default_rng(0)
    a = definite(rng, 2, 30, 30)
    guess = near(rng, a, change)
    found, error = jax.jit(_refinement.refined)(a, guess)
    residual, wanted = np.eye(30) - guess @ a, np.linalg.inv(a)
    before_last = np.linalg.matrix_power(residual, 2 ** (_refinement.STEPS - 1))
    np.testing.assert_allclose(
        error, np.linalg.norm(before_last, axis=(1, 2)), rtol=1e-6, atol=1e-12
    )
    relative = np.linalg.norm(found - wanted, axis=(1, 2)) / np.linalg.norm(
        wanted, axis=(1, 2)
    )
    assert (relative <= error**2 + 1e-12).all()
    assert (error < _refinement.largest_error(np.float32)).all()


@pytest.mark.parametrize("damping", [1.0, 0.01, 0.001])
def test_a_refined_inverse_is_as_accurate_as_a_factorization_in_float32(damping):
    """Measured by the gradient that it is multiplied with, at the last of 20 captures.

    The gradient of a linear model is a product with the covariance, so it lies along
    the large eigenvalues. At the smallest damping, where the condition number is 3 x
    10^4, the error of X + X (I - M X) would be five times the factorization's, and that
    of a result that is made symmetric 2.5 times.
    """
    rng = np.random.default_rng(0)
    inverse = a = None
    for _ in range(20):
        rows = (1 + rng.normal(size=(200, 64))) * np.geomspace(3, 0.03, 64)
        new = rows.T @ rows
        new = new / np.trace(new) * 64
        a = new if a is None else 0.95 * a + 0.05 * new
        damped = np.float32((a + damping * np.eye(64)) / (1 + damping))[None]
        exact = np.linalg.inv(damped.astype(float))
        if inverse is None:
            inverse = np.float32(exact)
        inverse, error = jax.jit(_refinement.refined)(damped, inverse)
        assert error <= _refinement.largest_error(np.float32)
    weights = rng.normal(size=(64, 10))
    grad = np.float32(damped[0].astype(float) @ weights)
    wanted = exact[0] @ grad.astype(float)
    factorized = _inverse._by_cholesky(jnp.asarray(damped))
    errors = [
        np.linalg.norm(np.asarray(x[0]) @ grad - wanted) for x in (inverse, factorized)
    ]
    assert errors[0] < 1.5 * errors[1]
    asymmetry = np.abs(inverse - inverse.mT).max() / np.abs(inverse).max()
    assert asymmetry < 1e-6


def test_the_largest_error_is_negligible_when_squared():
    """A guess whose error before the last step is larger is not near."""
    for dtype in (np.float32, np.float64):
        eps = np.finfo(dtype).eps
        assert 30 * eps < _refinement.largest_error(dtype) ** 2 < 100 * eps


@pytest.mark.parametrize("smallest", [-1e-3, -0.5, -10.0])
def test_an_indefinite_matrix_is_never_close_to_its_guess(smallest):
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(20, 20)))[0]
    values = np.linspace(0.5, 1.5, 20)
    values[0] = smallest
    a = basis * values @ basis.T
    guess = basis / np.maximum(values, 0.5) @ basis.T
    _, error = _refinement.refined(jnp.float32(a)[None], jnp.float32(guess)[None])
    assert not (error <= _refinement.largest_error(np.float32)).any()


def arrays(rng):
    """Matrices of two sizes in arrays of several shapes."""
    return [
        definite(rng, *shape) for shape in [(3, 3), (2, 4, 3, 3), (5, 5), (1, 5, 5)]
    ]


def inverted(matrices, guesses):
    least = [np.zeros(x.shape[:-2]) for x in matrices]
    return jax.jit(lambda *args: _inverse.invert_all(*args[:2], False, args[2]))(
        matrices, least, guesses
    )


@pytest.mark.parametrize("far", [(), (1,), (0, 1, 2, 3)])
def test_an_accelerator_factorizes_only_if_a_guess_is_far(
    x64, on_accelerator, monkeypatch, far
):
    rng = np.random.default_rng(1)
    matrices = arrays(rng)
    guesses = [
        np.broadcast_to(9 * np.eye(a.shape[-1]), a.shape)
        if i in far
        else near(rng, a, 0.05)
        for i, a in enumerate(matrices)
    ]
    for a, found in zip(matrices, inverted(matrices, guesses), strict=True):
        np.testing.assert_allclose(found, np.linalg.inv(a), rtol=1e-7)
    monkeypatch.setattr(_inverse, "_by_cholesky", lambda a: jnp.full_like(a, -1.0))
    for a, found in zip(matrices, inverted(matrices, guesses), strict=True):
        np.testing.assert_allclose(found, -np.ones_like(a) if far else np.linalg.inv(a))


@pytest.mark.parametrize("broken", [-1.0, np.nan])
def test_a_matrix_without_an_inverse_spoils_no_other(x64, on_accelerator, broken):
    rng = np.random.default_rng(1)
    matrices = arrays(rng)
    guesses = [near(rng, a, 0.0) for a in matrices]
    matrices[1][1, 2, 0, 0] = broken
    wanted = [np.linalg.inv(np.where(np.isfinite(a), a, 0)) for a in matrices]
    results = [np.array(x) for x in inverted(matrices, guesses)]
    assert not np.isfinite(results[1][1, 2]).all()
    results[1][1, 2] = wanted[1][1, 2] = 0
    for found, one in zip(results, wanted, strict=True):
        np.testing.assert_allclose(found, one, rtol=1e-7)


def scaled_inputs(form, initial=None):
    """A transformation, and what layers of two kinds sow in one pass."""
    model = TwoLayers()
    capture = functools.partial(capture_input_covariances, conv_covariance=form)
    x = jnp.zeros((1, 4, 4, 3))
    with capture():
        shapes = input_covariance_shapes(model, jax.random.key(0), x)
    tx = scale_by_input_covariance(
        0.9,
        damping=0.5,
        input_covariances_like=shapes,
        initial_covariance=initial,
    )
    params = model.init(jax.random.key(0), x)["params"]

    @functools.partial(jax.jit, static_argnames="when")
    def sown(seed, when=True):
        x = 1e3 * (1 + jax.random.normal(jax.random.key(seed), (64, 4, 4, 3)))
        with capture(when=when):
            return model.apply({"params": params}, x, mutable=["intermediates"])[1]

    return tx, params, sown


class TwoLayers(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (2, 2))(x)
        return nn.Dense(2)(x.reshape(len(x), -1))


@pytest.mark.parametrize("form", ["patch", "kronecker"])
def test_the_inverse_of_the_last_capture_is_the_guess_of_the_next(
    form, on_accelerator, monkeypatch
):
    """After some captures, none needs a factorization, in whatever units inputs are."""
    tx, params, sown = scaled_inputs(form)
    update = jax.jit(
        lambda state, sown: tx.update(params, state, input_covariances=sown)
    )
    states = [tx.init(params)]
    for seed in range(12):
        states.append(update(states[-1], sown(seed))[1])
    monkeypatch.setattr(_inverse, "_by_cholesky", lambda a: jnp.full_like(a, jnp.nan))
    without = jax.jit(
        lambda state, sown: tx.update(params, state, input_covariances=sown)
    )
    _, last = without(states[-2], sown(11))
    assert last.failures == 0
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-9),
        last.layers,
        states[-1].layers,
    )
    _, first = without(states[0], sown(0))
    assert first.failures == 2  # Both layers need a factorization at first.


@pytest.mark.parametrize("initial", [None, 1.0])
def test_a_layer_without_a_capture_needs_no_factorization(
    on_accelerator, monkeypatch, initial
):
    tx, params, sown = scaled_inputs("patch", initial)

    def half(seed):
        """As if the Dense layer had not been called."""
        tree = sown(seed)["intermediates"]
        other = sown(seed, when=False)["intermediates"]
        return {"Conv_0": tree["Conv_0"], "Dense_0": other["Dense_0"]}

    update = jax.jit(
        lambda state, sown: tx.update(params, state, input_covariances=sown)
    )
    state = tx.init(params)
    for seed in range(12):
        _, state = update(state, half(seed))
    monkeypatch.setattr(_inverse, "_by_cholesky", lambda a: jnp.full_like(a, jnp.nan))
    without = jax.jit(
        lambda state, sown: tx.update(params, state, input_covariances=sown)
    )
    _, after = without(state, half(12))
    assert after.failures == state.failures == 0
    dense = after.layers["Dense_0"]["kernel"]
    np.testing.assert_array_equal(dense.inverse[0][0, 0], np.eye(64))
