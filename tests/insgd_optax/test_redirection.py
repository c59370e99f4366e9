"""Multiplying gradients by D: extreme values, and small weights in groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from insgd_optax import _redirection
from insgd_optax._covariance_form import form_of


def definite(rng, *shape):
    """Positive definite matrices of this shape."""
    rows = rng.normal(size=shape) + np.eye(shape[-1])
    return jnp.asarray(rows @ rows.swapaxes(-1, -2))


def dense(rng, dim=5, outputs=3):
    form = form_of([(dim, 1, dim, 1)], (dim, outputs))
    grad = jnp.asarray(rng.normal(size=(dim, outputs)))
    return (grad, (definite(rng, 1, 1, dim, dim),)), form


def kronecker(rng, taps=4, channels=3):
    form = form_of(
        [(taps, 1, 1, taps, 1, 1), (1, channels, 1, 1, channels, 1)],
        (taps, channels, 2),
    )
    grad = jnp.asarray(rng.normal(size=form.kernel))
    basis = np.linalg.qr(rng.normal(size=(1, 1, 1, taps, taps)))[0]
    matrices = definite(rng, 1, 1, 1, taps, channels, channels)
    return (grad, (jnp.asarray(basis), matrices)), form


def stacked(rng):
    form = form_of([(2, 5, 1, 5, 1)], (2, 5, 3))
    grad = jnp.asarray(rng.normal(size=(2, 5, 3)))
    return (grad, (definite(rng, 2, 1, 1, 5, 5),)), form


def some_weights():
    rng = np.random.default_rng(0)
    makers = [dense, kronecker, dense, stacked, dense, kronecker, stacked]
    weights = [make(rng) for make in makers]
    weights.append(dense(rng, dim=6))
    (grad, inverse), form = dense(rng)
    weights.append(((grad.astype(jnp.float32), inverse), form))
    pairs, forms = zip(*weights, strict=True)
    return list(pairs), list(forms)


@pytest.mark.parametrize("preserve_norm", [True, False])
def test_weights_in_groups_are_redirected_as_one_by_one(x64, preserve_norm):
    pairs, forms = some_weights()
    groups = _redirection.groups(pairs, forms)
    assert groups == [[0, 2, 4], [1, 5], [3, 6], [7], [8]]
    for members in groups:
        some = [pairs[i] for i in members]
        options = {"form": forms[members[0]], "preserve_norm": preserve_norm}
        found = _redirection.together(some, **options)
        alone = _redirection.one_by_one(some, **options)
        for (grad, _), got, wanted in zip(some, found, alone, strict=True):
            assert (got[0].dtype, got[0].shape) == (grad.dtype, grad.shape)
            np.testing.assert_allclose(got[0], wanted[0], rtol=1e-6, atol=1e-12)
            np.testing.assert_allclose(got[1], wanted[1], rtol=1e-12)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(120, [[0, 1, 2, 3]]), (119, [[0, 1, 2], [3]]), (59, [[0], [1], [2], [3]])],
)
def test_the_entries_of_a_group_are_limited(monkeypatch, limit, expected):
    monkeypatch.setattr(_redirection, "MAX_ENTRIES", limit)
    weights = [dense(np.random.default_rng(i), dim=3, outputs=7) for i in range(4)]
    pairs, forms = map(list, zip(*weights, strict=True))
    assert sum(x.size for x in jax.tree.leaves(pairs[0])) == 30
    assert _redirection.groups(pairs, forms) == expected


@pytest.mark.parametrize("grad_scale", [1e-36, 1.0, 1e36])
@pytest.mark.parametrize("inverse_scale", [1e-33, 1e-20, 1.0, 1e20, 1e30])
def test_extreme_gradients_and_inverses_are_redirected(grad_scale, inverse_scale):
    (grad, (inverse,)), form = dense(np.random.default_rng(0))
    pair = grad * grad_scale, (inverse * inverse_scale,)
    update, cosine = _redirection._redirected(*pair, form, True)
    grad, wanted = (np.asarray(x, np.float64) for x in (grad, inverse[0, 0] @ grad))
    lengths = np.linalg.norm(grad), np.linalg.norm(wanted)
    np.testing.assert_allclose(
        update / grad_scale, wanted * lengths[0] / lengths[1], rtol=1e-5
    )
    np.testing.assert_allclose(
        cosine, (grad * wanted).sum() / np.prod(lengths), rtol=1e-5
    )


def test_a_gradient_along_the_smallest_eigenvector_keeps_its_norm():
    """The square of D's smallest eigenvalue is below float32's range."""
    form = form_of([(2, 1, 2, 1)], (2, 1))
    inverse = jnp.diag(jnp.array([1e-20, 1e6]))[None, None]
    grad = jnp.array([[3.0], [0.0]])
    update, cosine = _redirection._redirected(grad, (inverse,), form, True)
    np.testing.assert_allclose(update, grad, rtol=1e-6)
    assert cosine == pytest.approx(1)


def test_a_large_inverse_does_not_make_the_update_overflow():
    (grad, (inverse,)), form = dense(np.random.default_rng(0))
    pair = grad * 1e-36, (inverse * 1e30,)
    update, _ = _redirection._redirected(*pair, form, False)
    np.testing.assert_allclose(update, inverse[0, 0] @ grad * 1e-6, rtol=1e-5)


@pytest.mark.parametrize("inverse_scale", [1e-20, 1.0, 1e20])
def test_the_redirection_is_differentiable_and_has_no_infinities(inverse_scale):
    (grad, (inverse,)), form = dense(np.random.default_rng(0))
    inverse = (inverse * inverse_scale,)

    def first_entry(grad):
        return _redirection._redirected(grad, inverse, form, True)[0][0, 0]

    with jax.debug_infs(True):
        slope = jax.grad(first_entry)(grad)
    difference = jnp.zeros_like(grad).at[1, 2].set(1e-2)
    change = first_entry(grad + difference) - first_entry(grad - difference)
    np.testing.assert_allclose(slope[1, 2], change / 2e-2, rtol=1e-2)
