"""Inverses refined from guesses, as on an accelerator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from insgd_optax import _inverse, _refinement


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
    residual, wanted = np.eye(30) - a @ guess, np.linalg.inv(a)
    before_last = np.linalg.matrix_power(residual, 2 ** (_refinement.STEPS - 1))
    np.testing.assert_allclose(
        error, np.linalg.norm(before_last, axis=(1, 2)), rtol=1e-6, atol=1e-12
    )
    relative = np.linalg.norm(found - wanted, axis=(1, 2)) / np.linalg.norm(
        wanted, axis=(1, 2)
    )
    assert (relative <= error**2 + 1e-12).all()
    assert (error < _refinement.LARGEST_ERROR).all()
    np.testing.assert_array_equal(found, found.mT)


def test_a_refined_inverse_is_as_accurate_as_a_factorization_in_float32():
    rng = np.random.default_rng(0)
    a = np.float32(definite(rng, 1, 100, 100))
    guess = np.float32(near(rng, a.astype(float), 0.05))
    wanted = np.linalg.inv(a.astype(float))
    found, _ = jax.jit(_refinement.refined)(a, guess)
    factorized = _inverse._by_cholesky(jnp.asarray(a))
    errors = [np.linalg.norm(x - wanted) for x in (found, factorized)]
    assert errors[0] < 2 * errors[1]


@pytest.mark.parametrize("smallest", [-1e-3, -0.5, -10.0])
def test_an_indefinite_matrix_is_never_close_to_its_guess(smallest):
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(20, 20)))[0]
    values = np.linspace(0.5, 1.5, 20)
    values[0] = smallest
    a = basis * values @ basis.T
    guess = basis / np.maximum(values, 0.5) @ basis.T
    _, error = _refinement.refined(jnp.float32(a)[None], jnp.float32(guess)[None])
    assert not (error <= _refinement.LARGEST_ERROR).any()


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
