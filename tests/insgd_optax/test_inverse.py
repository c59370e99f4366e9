"""The inverse of positive definite matrices, on CPUs and accelerators, and its root."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from insgd_optax import _inverse


def matrices(size):
    """A stack of two matrices; the second is badly scaled."""
    rows = np.random.default_rng(0).normal(size=(2, 3 * size, size))
    rows[1] *= np.geomspace(1e-2, 1e2, size)
    return np.einsum("nri,nrj->nij", rows, rows)


by_halves = functools.partial(_inverse._one_by_one, _inverse._by_halves)


@pytest.mark.parametrize("function", [by_halves, _inverse._by_cholesky])
@pytest.mark.parametrize("size", [1, 5, 48, 49, 96, 97, 131, 211])
def test_the_inverse_matches_numpy_s(x64, function, size):
    a = matrices(size)
    result = jax.jit(function)(jnp.asarray(a))
    wanted = np.linalg.inv(a)
    scale = np.abs(wanted).max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(result / scale, wanted / scale, atol=1e-10)


@pytest.mark.parametrize(
    "size, damping, seed, most", [(144, 1e-3, 0, 2e-3), (400, 3e-5, 5, 0.05)]
)
@pytest.mark.parametrize("function", [by_halves, _inverse._by_cholesky])
def test_the_inverse_of_few_rows_and_little_damping_is_accurate_in_float32(
    function, size, damping, seed, most
):
    """At condition numbers of 4 x 10^4 and 4 x 10^6.

    Gauss-Jordan elimination by blocks would be wrong by 20 percent in the first case.
    In the second, the result would not be finite if products with inverses were not
    corrected.
    """
    rows = 0.5 + np.random.default_rng(seed).normal(size=(16, size))
    rows *= np.geomspace(1, 0.01, size)
    a = np.float32(rows.T @ rows)
    a += np.float32(damping * np.trace(a) / size * np.eye(size))
    wanted = np.linalg.inv(a.astype(float))
    (result,) = jax.jit(function)(jnp.asarray(a[None]))
    assert np.abs(result - wanted).max() < most * np.abs(wanted).max()


@pytest.mark.parametrize("size", [1, 5, 65])
def test_the_square_of_the_root_is_the_inverse(x64, size):
    a = matrices(size)
    root = jax.jit(_inverse.positive_definite_inverse_root)(jnp.asarray(a))
    np.testing.assert_allclose(root, root.mT, atol=1e-9 * np.abs(root).max())
    assert np.linalg.eigvalsh(root).min() > 0
    wanted = np.linalg.inv(a)
    scale = np.abs(wanted).max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(root @ root / scale, wanted / scale, atol=1e-8)


@pytest.mark.parametrize("bounded", [True, False])
@pytest.mark.parametrize("smallest", [1e-1, 1e-3, 1e-5])
def test_the_root_is_accurate_in_float32(smallest, bounded):
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(40, 40)))[0]
    values = np.geomspace(smallest, 1, 40)
    a = (basis * values) @ basis.T
    wanted = (basis / np.sqrt(values)) @ basis.T
    root = _inverse.positive_definite_inverse_root(
        jnp.asarray(a, jnp.float32), smallest if bounded else 0.0
    )
    error = np.abs(root - wanted).max() / np.abs(wanted).max()
    assert error < 2e-6 / smallest**0.5


def test_a_bound_halves_the_iterations_of_the_root(monkeypatch):
    """At a condition number of 20, the root takes 6 with the bound and 12 without.

    Without scaling, it would take 9: a bound that is too low scales too much.
    """
    values = np.geomspace(0.05, 1, 40)
    monkeypatch.setattr(_inverse, "_MOST_ITERATIONS", 6)
    root = _inverse.positive_definite_inverse_root(jnp.diag(values), 0.05)
    np.testing.assert_allclose(root, np.diag(values**-0.5), atol=1e-5)
    assert jnp.isnan(_inverse.positive_definite_inverse_root(jnp.diag(values))).all()


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [1.0, 1.001, 0.999]])
def test_the_root_of_nearly_a_multiple_of_the_identity_is_accurate(values):
    """Without a bound, a scaled step can move away from the solution."""
    root = _inverse.positive_definite_inverse_root(jnp.diag(jnp.array(values)))
    np.testing.assert_allclose(root, np.diag(np.array(values) ** -0.5), atol=1e-6)


@pytest.mark.parametrize(
    "function",
    [
        by_halves,
        _inverse._by_cholesky,
        _inverse.positive_definite_inverse_root,
    ],
)
@pytest.mark.parametrize("size, row", [(5, 0), (100, 0), (100, 99)])
def test_the_inverse_of_an_indefinite_matrix_is_not_finite(x64, function, size, row):
    good, bad = matrices(size)
    bad[row, row] = -1.0
    result = jax.jit(function)(jnp.stack([good, bad]))
    assert jnp.isfinite(result[0]).all()
    assert not jnp.isfinite(result[1]).all()


def inverted(matrices, least, root):
    """The inverses, without guesses that could help."""
    return _inverse.invert_all(
        matrices, least, root, list(map(jnp.zeros_like, matrices))
    )


def mixed():
    """Matrices of two sizes in arrays of several shapes, and bounds."""
    shapes = [(3, 3), (2, 4, 3, 3), (2, 2), (1, 3, 3), (3, 2, 2)]
    rows = [np.random.default_rng(0).normal(size=(*s[:-1], 9)) for s in shapes]
    arrays = [jnp.asarray(x @ np.swapaxes(x, -1, -2)) for x in rows]
    return arrays, [jnp.zeros(s[:-2], arrays[0].dtype) for s in shapes]


@pytest.mark.parametrize("most_entries", [math.inf, 100, 0])
@pytest.mark.parametrize("root", [False, True])
def test_each_matrix_of_a_group_gets_its_inverse(x64, monkeypatch, root, most_entries):
    monkeypatch.setattr(_inverse, "_MOST_ENTRIES", most_entries)
    arrays, bounds = mixed()
    results = jax.jit(lambda *given: inverted(*given, root))(arrays, bounds)
    for array, result in zip(arrays, results, strict=True):
        result = result @ result if root else result
        np.testing.assert_allclose(result, np.linalg.inv(array), rtol=1e-6)


def test_each_matrix_of_a_group_gets_its_bound(x64, monkeypatch):
    """The iterations suffice only with the bounds."""
    monkeypatch.setattr(_inverse, "_MOST_ITERATIONS", 7)
    values = np.geomspace(0.05, 1, 8)
    scales = [np.array([1.0, 1e3]), np.array(1e6)]
    arrays = [jnp.asarray(np.diag(values) * s[..., None, None]) for s in scales]
    bounds = [jnp.asarray(0.05 * s) for s in scales]
    for array, root in zip(arrays, inverted(arrays, bounds, root=True), strict=True):
        np.testing.assert_allclose(root @ root, np.linalg.inv(array), atol=1e-9)
    wrong = inverted(arrays, [x / 1e3 for x in bounds], root=True)
    assert all(jnp.isnan(root).all() for root in wrong)


def test_a_group_has_matrices_of_one_size_and_limited_entries():
    arrays, _ = mixed()  # They have 9, 72, 4, 9 and 12 entries.
    assert _inverse._groups(arrays, math.inf) == [[0, 1, 3], [2, 4]]
    assert _inverse._groups(arrays, 81) == [[0, 1], [2, 4], [3]]
    assert _inverse._groups(arrays, 80) == [[0], [1], [2, 4], [3]]
    assert _inverse._groups(arrays, 0) == [[0], [1], [2], [3], [4]]
    # Arrays of two dtypes are not joined.
    assert _inverse._groups([arrays[0], arrays[0].astype(np.float16)], 99) == [[0], [1]]


def test_an_accelerator_factorizes_matrices_of_one_size_at_once():
    traced = jax.jit(inverted, static_argnums=2).trace(*mixed(), False)
    found = {
        platform: traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda")
    }
    # The batches of both sizes.
    assert len(re.findall(r"custom_call @\w*potrf", found["cuda"])) == 2
    assert "custom_call" not in found["cpu"]


@pytest.mark.parametrize("most_entries, loops", [(math.inf, 4), (0, 7)])
def test_a_cpu_takes_the_matrices_of_a_group_one_by_one(
    monkeypatch, most_entries, loops
):
    """Each group has a loop over rows. One of several matrices has one over these, too.

    Of the five arrays of `mixed`, three have only one matrix.
    """
    monkeypatch.setattr(_inverse, "_MOST_ENTRIES", most_entries)
    traced = jax.jit(lambda *given: inverted(*given, False)).trace(*mixed())
    text = traced.lower(lowering_platforms=("cpu",)).as_text()
    assert text.count("stablehlo.while") == loops
