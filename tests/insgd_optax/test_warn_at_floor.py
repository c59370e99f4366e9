"""`warn_at_floor` names the weights at INSGD's floor, which take the longest steps."""

import warnings

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

from insgd_optax import (
    MultiSteps,
    insgd,
    learning_rate_multipliers,
    nlms,
    warn_at_floor,
)

PARAMS = {
    layer: {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    for layer in ("one_hot", "wide")
}
NORMS = {
    "one_hot": {"input_norm": jnp.ones(())},
    "wide": {"input_norm": jnp.array(9.0)},
}


def first_update(tx, norms=NORMS):
    return tx.update(PARAMS, tx.init(PARAMS), PARAMS, input_norms=norms)[1]


def in_a_scan(tx):
    def step(state, _):
        return tx.update(PARAMS, state, PARAMS, input_norms=NORMS)[1], None

    return jax.jit(lambda: jax.lax.scan(step, tx.init(PARAMS), length=3)[0])()


def by_pmap(tx):
    def step(norms):
        return first_update(tx, jax.lax.pmean(norms, "batch"))

    norms = jax.tree.map(lambda norm: jnp.full(8, norm), NORMS)
    return jax.pmap(step, axis_name="batch")(norms)


def by_shard_map(tx):
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))

    def step(norms):
        norms = jax.tree.map(lambda norm: jax.lax.pmean(norm[0], "batch"), norms)
        return first_update(tx, norms)

    norms = jax.tree.map(lambda norm: jnp.full(8, norm), NORMS)
    specs = PartitionSpec("batch"), PartitionSpec()
    step = jax.shard_map(
        step, mesh=mesh, in_specs=specs[0], out_specs=specs[1], check_vma=False
    )
    return jax.jit(step)(norms)


@pytest.mark.parametrize(
    "run",
    [
        first_update,
        jax.jit(first_update, static_argnums=0),
        in_a_scan,
        by_pmap,
        by_shard_map,
    ],
)
def test_it_names_the_weights_and_the_remedy(run):
    with pytest.warns(UserWarning, match="by 100") as caught:
        assert warn_at_floor(run(insgd(0.1))) == ["one_hot/kernel"]
    (warning,) = caught
    message = str(warning.message)
    assert "one_hot/kernel" in message and 'normalizer="log1p"' in message
    assert "wide" not in message
    assert warning.filename == __file__


def test_accumulated_gradients_count_once_they_are_applied():
    tx = MultiSteps(insgd(0.1), 2)
    update = jax.jit(tx.update)
    _, state = update(PARAMS, tx.init(PARAMS), PARAMS, input_norms=NORMS)
    assert warn_at_floor(state) == []
    _, state = update(PARAMS, state, PARAMS, input_norms=NORMS)
    with pytest.warns(UserWarning, match="one_hot/kernel"):
        warn_at_floor(state)


def test_a_dead_input_is_at_the_floor_once_it_had_a_power():
    tx = insgd(0.1, power_decay=0.0)
    zero = jax.tree.map(jnp.zeros_like, NORMS)
    assert warn_at_floor(first_update(tx, zero)) == []  # Nothing known: SGD's step.
    _, state = tx.update(PARAMS, first_update(tx), PARAMS, input_norms=zero)
    with pytest.warns(UserWarning, match="one_hot/kernel, wide/kernel"):
        warn_at_floor(state)


@pytest.mark.parametrize(
    "tx", [insgd(0.1, normalizer="log1p"), nlms(eps=0.01), insgd(0.1, eps=0.5)]
)
def test_it_is_silent_without_the_floor(tx):
    assert warn_at_floor(first_update(tx)) == []
    assert warn_at_floor(tx.init(PARAMS)) == []


def test_the_floor_is_at_the_given_eps():
    state = first_update(insgd(0.1, eps=0.5))
    with pytest.warns(UserWarning, match="by 2 "):
        assert warn_at_floor(state, eps=0.5) == ["one_hot/kernel"]


def test_one_layer_of_a_stack_at_the_floor_is_enough():
    params = {"kernel": jnp.ones((2, 3, 3))}
    norms = {"input_norm": jnp.array([9.0, 1.0])}
    tx = insgd(0.1, input_norms_like=jax.eval_shape(lambda: norms))
    _, state = tx.update(params, tx.init(params), params, input_norms=norms)
    assert learning_rate_multipliers(state)["kernel"].size == 2
    with pytest.warns(UserWarning, match="kernel"):
        warn_at_floor(state)


def test_python_shows_a_repeated_warning_once():
    state = first_update(insgd(0.1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            warn_at_floor(state)
    assert len(caught) == 1


def test_the_compiled_step_has_no_callback():
    """A callback would rule out jax.export and the compilation cache."""
    step = jax.jit(first_update, static_argnums=0).lower(insgd(0.1))
    assert "callback" not in step.as_text()


def test_traced_values_are_refused():
    def step():
        return warn_at_floor(first_update(insgd(0.1)))

    with pytest.raises(ValueError, match="outside jax.jit"):
        jax.jit(step)()


def test_a_state_without_input_powers_is_an_error():
    with pytest.raises(ValueError, match="no ScaleByInputPowerState"):
        warn_at_floor(optax.sgd(0.1).init(PARAMS))
