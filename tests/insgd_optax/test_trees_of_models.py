"""Several models in one tree, and norms of an earlier pass."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from insgd_optax import capture_input_norms, input_powers, insgd

X = jnp.ones((2, 4))


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x)

    def twice(self, x):
        return self(x) + self(x)


def passed(model, variables):
    with capture_input_norms(p=2):
        return model.apply(variables, X, mutable=["intermediates"])[1]


@pytest.mark.parametrize("whole", [True, False], ids=["sown", "intermediates"])
@pytest.mark.parametrize("boxed", [True, False], ids=["variables", "params"])
def test_all_models_in_one_tree_have_powers(whole, boxed):
    variables = {
        "gen": jax.jit(Net().init)(jax.random.key(0), X),
        "dis": nn.Sequential([Net(), nn.Dense(2)]).init(jax.random.key(1), X),
    }
    sown = {
        "gen": passed(Net(), variables["gen"]),
        "dis": passed(nn.Sequential([Net(), nn.Dense(2)]), variables["dis"]),
    }
    if not whole:
        sown = {name: each["intermediates"] for name, each in sown.items()}
    params = variables
    if not boxed:
        params = {name: each["params"] for name, each in variables.items()}
    tx = insgd(0.1)
    _, state = tx.update(params, tx.init(params), params, input_norms=sown)
    powers = input_powers(state)
    assert len(powers) == 3
    assert all(float(power) > 0 for power in powers.values())


def test_norms_fed_back_are_an_error():
    variables = jax.jit(Net().init)(jax.random.key(0), X)
    sown = passed(Net(), variables)
    with pytest.raises(
        ValueError, match="hold Dense_0/input_norm/0 of an earlier pass"
    ):
        passed(Net(), {**variables, **sown})
    with pytest.raises(ValueError, match="earlier pass"), capture_input_norms():
        Net().apply(
            {**variables, **sown}, X, mutable=["intermediates"], method=Net.twice
        )
    # Other values that a model sows may be fed back, and so may an empty collection.
    other = {"intermediates": {"Dense_0": {"features": (X,)}}}
    assert passed(Net(), {**variables, **other})
    # A pass that sows nothing accepts them.
    with capture_input_norms():
        Net().apply({**variables, **sown}, X)


def test_norms_of_a_model_called_twice_are_not_norms_fed_back():
    variables = jax.jit(Net().init)(jax.random.key(0), X)

    def both(model, x):
        return model(x) + model(x)

    for method in (Net.twice, both):
        for model in (Net(), nn.jit(Net, methods=["__call__", "twice"])()):
            with capture_input_norms():
                _, sown = model.apply(
                    variables, X, mutable=["intermediates"], method=method
                )
            assert len(sown["intermediates"]["Dense_0"]["input_norm"]) == 2
    bound = Net().bind(variables, mutable=["intermediates"])
    for _ in range(2):
        with capture_input_norms():
            bound(X)
    assert len(bound.variables["intermediates"]["Dense_0"]["input_norm"]) == 2


def test_an_nnx_module_inside_linen_is_named_as_a_cause():
    model = nnx.bridge.to_linen(nnx.Linear, 4, 3)
    variables = jax.jit(model.init)(jax.random.key(0), X)
    with capture_input_norms():
        _, sown = model.apply(variables, X, mutable=["intermediates"])
    params, tx = variables["params"], insgd(0.1)
    with pytest.raises(ValueError, match=r"nnx\.bridge\.ToLinen"):
        tx.update(params, tx.init(params), params, input_norms=sown)


def test_map_params_passes_powers_and_multipliers_as_whole_dicts():
    """As the guide says, until Optax can distinguish their leaves from parameters."""
    params = jax.jit(Net().init)(jax.random.key(0), X)["params"]
    tx, seen = insgd(0.1), []
    optax.tree.map_params(
        tx, lambda x: x, tx.init(params), transform_non_params=seen.append
    )
    # P, and the multipliers.
    assert [type(each) for each in seen if isinstance(each, dict)] == [dict, dict]
