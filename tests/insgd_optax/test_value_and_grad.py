"""Loss, gradients and covariances of one call equal those within the context."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from insgd_optax import (
    capture_input_covariances,
    capture_input_norms,
    value_and_grad_with_input_covariances,
    value_and_grad_with_input_norms,
)

MODEL = nn.Sequential([nn.Conv(3, (3, 3)), nn.relu, nn.Dense(2)])
X = jax.random.normal(jax.random.key(0), (4, 5, 5, 2))
PARAMS = jax.jit(MODEL.init)(jax.random.key(1), X)["params"]
SETTINGS = {"max_rows": 20, "max_dim": 10, "conv_covariance": "kronecker"}


def loss_fn(params, x, *, scale):
    y, variables = MODEL.apply({"params": params}, x, mutable=["intermediates"])
    return scale * jnp.mean(y**2), variables


@pytest.mark.parametrize("has_aux", [False, True])
def test_covariances_are_separated_from_other_variables(has_aux):
    def loss(params, x, *, scale):
        value, variables = loss_fn(params, x, scale=scale)
        variables = {**variables, "batch_stats": {"mean": 1}}
        return value, (variables, 7) if has_aux else variables

    @jax.jit
    def found(params, x):
        with capture_input_norms():
            return value_and_grad_with_input_covariances(
                loss, has_aux=has_aux, **SETTINGS
            )(params, x, scale=2.0)

    @jax.jit
    def expected(params, x):
        with capture_input_norms(), capture_input_covariances(**SETTINGS):
            return jax.value_and_grad(loss_fn, has_aux=True)(params, x, scale=2.0)

    (value, aux), grads, covariances = found(PARAMS, X)
    (value_2, variables), grads_2 = expected(PARAMS, X)
    assert value == value_2
    assert jax.tree.all(jax.tree.map(jnp.array_equal, grads, grads_2))
    sown = variables["intermediates"]
    assert covariances.keys() == sown.keys()
    for layer, statistics in covariances.items():
        assert list(statistics) == ["input_covariance"]
        pairs = zip(
            jax.tree.leaves(statistics["input_covariance"]),
            jax.tree.leaves(sown[layer]["input_covariance"]),
            strict=True,
        )
        assert all(jnp.array_equal(one, other) for one, other in pairs)
    rest = aux[0] if has_aux else aux
    assert rest["batch_stats"] == {"mean": 1}
    assert list(rest["intermediates"]["layers_0"]) == ["input_norm"]
    assert not has_aux or aux[1] == 7


def test_a_traced_when_captures_only_on_its_steps():
    @jax.jit
    def counts(step):
        grad_fn = value_and_grad_with_input_covariances(loss_fn, when=step % 2 == 0)
        _, _, covariances = grad_fn(PARAMS, X, scale=1.0)
        return covariances["layers_2"]["input_covariance"][0].count

    assert counts(0) == 100
    assert counts(1) == 0


def test_a_loss_that_returns_no_intermediates_is_an_error():
    def loss(params):
        return jnp.sum(params), {"batch_stats": {}}

    message = "returned no 'intermediates': it must return"
    with pytest.raises(ValueError, match=message):
        value_and_grad_with_input_covariances(loss)(jnp.ones(2))
    for find in (
        value_and_grad_with_input_norms,
        value_and_grad_with_input_covariances,
    ):
        for has_aux in (False, True):
            with pytest.raises(ValueError, match=message):
                find(jnp.sum, has_aux=has_aux)(jnp.ones(2))
    with pytest.raises(ValueError, match=message):
        value_and_grad_with_input_norms(loss, has_aux=True)(jnp.ones(2))
