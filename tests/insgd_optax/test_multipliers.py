"""The state has the multipliers, however the optimizer is built, wrapped or saved."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from insgd_optax import (
    MultiSteps,
    input_powers,
    insgd,
    learning_rate_multipliers,
    nlms,
    scale_by_input_power,
)

PARAMS = {"a": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
NORMS = {"a": {"input_norm": jnp.array(1.5)}}
POWER = 1.5


def after(tx, steps=1):
    state = tx.init(PARAMS)
    update = jax.jit(tx.update)
    for _ in range(steps):
        _, state = update(PARAMS, state, PARAMS, input_norms=NORMS)
    return state


def multiplier(state, **options):
    return learning_rate_multipliers(state, **options)["a/kernel"]


@pytest.mark.parametrize(
    ("tx", "divisor"),
    [
        (insgd(0.1), np.log(POWER)),
        (insgd(0.1, eps=0.6), 0.6),
        (nlms(eps=2.0), 2 + POWER),
        (insgd(0.1, normalizer="log1p", polyak_factor=None), 1 + np.log1p(POWER)),
        (scale_by_input_power(normalizer=jnp.sqrt), np.sqrt(POWER)),
    ],
)
def test_multipliers_are_read_from_the_state_alone(tx, divisor):
    assert multiplier(tx.init(PARAMS)) == 1
    state = after(tx)
    np.testing.assert_allclose(multiplier(state), 1 / divisor, rtol=1e-6)
    assert list(learning_rate_multipliers(state)) == ["a/kernel"]
    np.testing.assert_allclose(multiplier(jax.jit(lambda s: s)(state)), 1 / divisor)


def test_the_multiplier_is_the_factor_of_the_gradient():
    tx = scale_by_input_power(eps=0.7)
    updates, state = tx.update(PARAMS, tx.init(PARAMS), input_norms=NORMS)
    np.testing.assert_array_equal(updates["a"]["kernel"], multiplier(state))


def test_an_injected_eps_may_change():
    tx = optax.inject_hyperparams(insgd)(0.1, eps=0.6)
    state = after(tx)
    np.testing.assert_allclose(multiplier(state), 1 / 0.6, rtol=1e-6)
    state.hyperparams["eps"] = jnp.array(0.8)
    _, state = tx.update(PARAMS, state, PARAMS, input_norms=NORMS)
    np.testing.assert_allclose(multiplier(state), 1 / 0.8, rtol=1e-6)


def test_wrappers_leave_the_multiplier_unchanged():
    plain = multiplier(after(insgd(0.1, eps=0.6)))
    mask = {"a": {"kernel": True, "bias": False}}
    labels = {"a": {"kernel": "one", "bias": "two"}}
    for tx in (
        optax.masked(insgd(0.1, eps=0.6), mask),
        optax.partition({"one": insgd(0.1, eps=0.6), "two": optax.sgd(0.1)}, labels),
        optax.named_chain(("clip", optax.clip(1.0)), ("rule", insgd(0.1, eps=0.6))),
        MultiSteps(insgd(0.1, eps=0.6), 1),
    ):
        np.testing.assert_array_equal(multiplier(after(tx)), plain)


def test_map_params_does_not_treat_the_multiplier_as_a_parameter():
    """Like P, it is replicated even if its weight is sharded."""
    tx = insgd(0.1)
    marked = optax.tree.map_params(
        tx, lambda _: "weight", after(tx), transform_non_params=lambda _: "other"
    )
    assert marked[0].multiplier == marked[0].power == "other"


def test_a_checkpoint_keeps_the_multiplier(tmp_path):
    state = after(insgd(0.1, eps=0.6))
    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, insgd(0.1).init(PARAMS))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", like)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    np.testing.assert_array_equal(multiplier(restored), multiplier(state))


def test_multipliers_of_other_normalizers_follow_from_the_power():
    state = after(insgd(0.1, eps=0.6))
    assert input_powers(state)["a/kernel"] == POWER
    for options, divisor in (
        ({"eps": 0.5}, 0.5),
        ({"normalizer": "log"}, np.log(POWER)),
        ({"normalizer": "power", "eps": 1.0}, 1 + POWER),
        ({"normalizer": jnp.sqrt}, np.sqrt(POWER)),
    ):
        np.testing.assert_allclose(multiplier(state, **options), 1 / divisor, 1e-6)
