"""The transform: bad norms, missing layers, trees of many kinds, and its errors."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import freeze

from insgd_optax import (
    capture_input_norms,
    input_norm_shapes,
    input_powers,
    insgd,
    learning_rate_multipliers,
    scale_by_input_power,
)

PARAMS = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}


def norm_of(value):
    return {"dense": {"input_norm": (jnp.full((1, 1), value),)}}


def after(tx, *values, params=PARAMS):
    """The last update and state, with gradients of 1 and these norms."""
    state = tx.init(params)
    for value in values:
        updates, state = tx.update(params, state, params, input_norms=norm_of(value))
    return updates, state


def power(state):
    return input_powers(state)["dense/kernel"].item()


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_after_a_first_norm_that_is_not_finite_the_next_one_initializes_the_power(bad):
    tx = insgd(0.1, momentum=None)
    updates, state = after(tx, bad)
    assert power(state) == 0
    np.testing.assert_allclose(updates["dense"]["kernel"], -0.1, rtol=1e-6)
    updates, state = after(tx, bad, np.exp(4.0))
    np.testing.assert_allclose(power(state), np.exp(4.0), rtol=1e-6)
    np.testing.assert_allclose(updates["dense"]["kernel"], -0.1 / 4, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_a_later_norm_that_is_not_finite_leaves_the_power_unchanged(bad):
    tx = scale_by_input_power()
    updates, state = after(tx, np.exp(4.0), bad)
    np.testing.assert_allclose(power(state), np.exp(4.0), rtol=1e-6)
    np.testing.assert_allclose(updates["dense"]["kernel"], 0.25, rtol=1e-6)
    assert state.count == 2


def test_an_input_of_zeros_does_not_multiply_the_step_by_100():
    updates, state = after(scale_by_input_power(), 0.0)
    assert power(state) == 0
    np.testing.assert_array_equal(updates["dense"]["kernel"], 1.0)


def test_no_nan_is_computed_before_the_first_norm():
    """P is 0 then, where a normalizer need not be defined."""
    tx = scale_by_input_power(normalizer=lambda power: power * jnp.log(power))
    with jax.debug_nans(True):
        updates, _ = after(tx, 0.0)
    np.testing.assert_array_equal(updates["dense"]["kernel"], 1)


def test_the_log_of_a_power_below_one_is_floored_at_eps():
    updates, state = after(scale_by_input_power(), 0.5)
    np.testing.assert_allclose(updates["dense"]["kernel"], 100.0, rtol=1e-6)
    multipliers = learning_rate_multipliers(state)
    np.testing.assert_allclose(multipliers["dense/kernel"], 100.0, rtol=1e-6)
    updates, _ = after(scale_by_input_power(normalizer="log1p"), 0.5)
    np.testing.assert_allclose(
        updates["dense"]["kernel"], 1 / (1 + np.log(1.5)), rtol=1e-6
    )


def test_insgd_is_the_chain_written_out_by_hand():
    mask = {"dense": {"kernel": True, "bias": False}}
    schedule = optax.linear_schedule(0.1, 0.0, 10)
    options = {"eps": 0.1, "normalizer": "log", "scope": "layer"}
    ready = insgd(
        schedule,
        power_decay=0.8,
        momentum=0.9,
        nesterov=True,
        weight_decay=0.01,
        weight_decay_mask=mask,
        **options,
    )
    by_hand = optax.chain(
        scale_by_input_power(0.8, **options),
        optax.add_decayed_weights(0.01, mask),
        optax.trace(0.9, nesterov=True),
        optax.scale_by_learning_rate(schedule),
    )
    for values in [(5.0,), (5.0, 9.0), (5.0, 9.0, 2.0)]:
        one, one_state = after(ready, *values)
        two, two_state = after(by_hand, *values)
        assert jax.tree.structure(one_state) == jax.tree.structure(two_state)
        jax.tree.map(np.testing.assert_array_equal, one, two)
        jax.tree.map(np.testing.assert_array_equal, one_state, two_state)


def test_insgd_without_momentum_needs_no_parameters():
    tx = insgd(0.1, momentum=None)
    state = tx.init(PARAMS)
    updates, _ = tx.update(PARAMS, state, input_norms=norm_of(np.exp(2.0)))
    np.testing.assert_allclose(updates["dense"]["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_allclose(updates["dense"]["bias"], -0.1, rtol=1e-6)


def test_other_kinds_of_trees_give_the_same_updates():
    """A "params" key on top, frozen dicts, boxes and a whole collection."""
    tx = scale_by_input_power()
    plain, _ = after(tx, np.exp(2.0))
    boxed = {
        "dense": {
            "kernel": nn.Partitioned(jnp.ones((2, 3)), (None, "model")),
            "bias": nn.LogicallyPartitioned(jnp.ones(3), ("embed",)),
        }
    }
    for params in ({"params": PARAMS}, freeze(PARAMS), boxed):
        updates, state = after(tx, np.exp(2.0), params=params)
        assert jax.tree.structure(updates) == jax.tree.structure(params)
        jax.tree.map(
            np.testing.assert_array_equal,
            jax.tree.leaves(updates),
            jax.tree.leaves(plain),
        )
        assert all(power.shape == () for power in jax.tree.leaves(state.power))
    for norms in (
        freeze(norm_of(np.exp(2.0))),
        {"intermediates": norm_of(np.exp(2.0))},
    ):
        updates, _ = tx.update(PARAMS, tx.init(PARAMS), input_norms=norms)
        jax.tree.map(np.testing.assert_array_equal, updates, plain)


def test_get_partition_spec_replicates_the_state_of_boxed_parameters():
    boxed = {"dense": {"kernel": nn.Partitioned(jnp.ones((2, 3)), ("data", "model"))}}
    specs = nn.get_partition_spec(scale_by_input_power().init(boxed))
    (spec,) = jax.tree.leaves(specs.power)
    assert spec == jax.sharding.PartitionSpec()


def test_a_module_may_be_named_like_the_sown_value():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(nn.Dense(3, name="input_norm")(x))

    x = jnp.ones((1, 2))
    params = jax.jit(Net().init)(jax.random.key(0), x)["params"]
    with capture_input_norms():
        _, sown = Net().apply({"params": params}, x, mutable=["intermediates"])
    tx = scale_by_input_power()
    _, state = tx.update(params, tx.init(params), input_norms=sown["intermediates"])
    assert input_powers(state)["input_norm/kernel"] == 2


def test_a_predicate_chooses_the_weights():
    tx = scale_by_input_power(scope=lambda path: path == ("dense", "bias"))
    updates, state = after(tx, np.exp(2.0))
    np.testing.assert_allclose(updates["dense"]["bias"], 0.5, rtol=1e-6)
    np.testing.assert_array_equal(updates["dense"]["kernel"], 1.0)
    assert isinstance(state.power["dense"]["kernel"], optax.MaskedNode)


def test_a_layer_left_out_of_a_pass_keeps_its_power():
    params = {**PARAMS, "other": {"kernel": jnp.ones((2, 2))}}
    tx = scale_by_input_power(missing="keep")
    state = tx.init(params)
    other = {"other": {"input_norm": jnp.array(np.exp(5.0))}}
    both = {**norm_of(np.exp(2.0)), **other}
    _, state = tx.update(params, state, input_norms=both)
    updates, state = tx.update(params, state, input_norms=norm_of(np.exp(3.0)))
    np.testing.assert_allclose(input_powers(state)["other/kernel"], np.exp(5.0), 1e-6)
    np.testing.assert_allclose(updates["other"]["kernel"], 0.2, rtol=1e-6)
    updates, _ = tx.update(params, tx.init(params), input_norms={})
    np.testing.assert_array_equal(updates["other"]["kernel"], 1.0)


def test_norms_of_layers_without_parameters_are_ignored():
    tx = scale_by_input_power()
    norms = {**norm_of(9.0), "gone": {"input_norm": jnp.ones(())}}
    tx.update(PARAMS, tx.init(PARAMS), input_norms=norms)


# Errors that users will see, each tested for its message.


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(3)(x)
        x = nn.LayerNorm()(x)
        return nn.WeightNorm(nn.Dense(2))(x)


def test_norms_that_are_not_passed_are_an_error():
    tx = insgd(0.1)
    words = "input_norms is missing: call tx.update.*capture_input_norms.*TrainState"
    with pytest.raises(ValueError, match=words):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)


def test_a_forgotten_capture_lists_every_weight_and_the_causes():
    tx = insgd(0.1)
    x = jnp.ones((1, 4))
    params = jax.jit(Net().init)(jax.random.key(0), x)["params"]
    _, sown = Net().apply({"params": params}, x, mutable=["intermediates"])
    with pytest.raises(ValueError) as error:
        tx.update(params, tx.init(params), params, input_norms=sown)
    message = str(error.value)
    assert "no input norm:\n  Dense_0/kernel\n  Dense_1/kernel\n" in message
    assert "Layers with a norm:\n  none" in message
    for cause in (
        "outside `with insgd_optax.capture_input_norms()",
        'mutable=["intermediates"]',
        "nnx.bridge.ToLinen",
        "nn.WeightNorm",
        "capture_input_norms(layers=...)",
        "norm_layers=True",
        'missing="keep"',
    ):
        assert cause in message


@pytest.mark.parametrize("train", [True, False])
def test_a_layer_inside_spectral_norm_sows_its_norm(train):
    model, x = nn.SpectralNorm(nn.Dense(2)), jnp.full((1, 4), 2.0)
    variables = model.init(jax.random.key(0), x, update_stats=True)
    mutable = ["intermediates", "batch_stats"]
    with capture_input_norms():
        _, sown = model.apply(variables, x, update_stats=train, mutable=mutable)
    norms = jax.tree.leaves(sown["intermediates"])
    np.testing.assert_allclose(np.ravel(norms), [16.0])


def test_a_layer_inside_weight_norm_is_named():
    tx = insgd(0.1)
    x = jnp.ones((1, 4))
    params = jax.jit(Net().init)(jax.random.key(0), x)["params"]
    with capture_input_norms():
        _, sown = Net().apply({"params": params}, x, mutable=["intermediates"])
    with pytest.raises(ValueError) as error:
        tx.update(params, tx.init(params), params, input_norms=sown["intermediates"])
    message = str(error.value)
    assert "no input norm:\n  Dense_1/kernel\n" in message
    assert "Layers with a norm:\n  Dense_0\n" in message


def test_mutable_without_intermediates_is_an_error():
    x = jnp.ones((1, 4))
    model = nn.Dense(2)
    params = jax.jit(model.init)(jax.random.key(0), x)["params"]
    with capture_input_norms():
        _, sown = model.apply({"params": params}, x, mutable=["batch_stats"])
    tx = insgd(0.1)
    with pytest.raises(
        ValueError, match=r'(?s)  kernel\n.*mutable=\["intermediates"\]'
    ):
        tx.update(params, tx.init(params), params, input_norms=sown)


def test_a_scan_without_intermediates_in_its_axes_has_a_scalar_power():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.Dense(4)(x), None

    block = nn.scan(
        Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2
    )()
    x = jnp.ones((1, 4))
    params = jax.jit(block.init)(jax.random.key(0), x, None)["params"]
    with capture_input_norms():
        _, sown = block.apply({"params": params}, x, None, mutable=["intermediates"])
    tx = insgd(0.1)
    _, state = tx.update(params, tx.init(params), params, input_norms=sown)
    assert input_powers(state)["Dense_0/kernel"].shape == ()


def test_an_empty_scope_lists_the_parameters():
    params = {"embed": {"embedding": jnp.ones((2, 2))}, "token": jnp.ones(2)}
    words = r"(?s)no parameter is in scope='kernel'.*  embed/embedding\n  token"
    with pytest.raises(ValueError, match=words):
        insgd(0.1).init(params)
    many = {f"w{i:02}": jnp.ones(1) for i in range(30)}
    with pytest.raises(ValueError, match="and 10 more"):
        insgd(0.1).init(many)


def test_shapes_that_do_not_fit_name_the_path_and_both_shapes():
    like = {"dense": {"input_norm": jax.ShapeDtypeStruct((5, 1), jnp.float32)}}
    words = r"norm of dense/kernel does not fit: \(5, 1\).*weight \(2, 3\)"
    with pytest.raises(ValueError, match=words):
        insgd(0.1, input_norms_like=like).init(PARAMS)
    fits = {"dense": {"input_norm": jax.ShapeDtypeStruct((1, 3), jnp.float32)}}
    tx = insgd(0.1, input_norms_like=fits)
    state = tx.init(PARAMS)
    other = {"dense": {"input_norm": jnp.ones((2, 1))}}
    with pytest.raises(ValueError, match=r"dense/kernel.*gives \(2, 1\).*\(1, 3\)"):
        jax.jit(tx.update)(PARAMS, state, PARAMS, input_norms=other)


def test_shapes_that_lack_a_layer_are_an_error_unless_missing_is_keep():
    x = jnp.ones((1, 4))
    with capture_input_norms():
        like = input_norm_shapes(nn.Dense(2, name="dense"), jax.random.key(0), x)
    params = {"other": {"kernel": jnp.ones((4, 2))}}
    with pytest.raises(ValueError, match=r"(?s)input_norms_like has no.*other/kernel"):
        insgd(0.1, input_norms_like=like).init(params)
    insgd(0.1, input_norms_like=like, missing="keep").init(params)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"learning_rate": -0.1}, "learning_rate=-0.1 must be at least 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan must be at least 0"),
        ({"weight_decay": -1}, "weight_decay=-1 must be at least 0"),
        ({"power_decay": 1.0}, r"power_decay=1.0 must lie in \[0, 1\)"),
        ({"power_decay": -0.1}, r"decay=-0.1 must lie in \[0, 1\)"),
        ({"momentum": 1.0}, r"^momentum=1.0 must lie in \[0, 1\)"),
        ({"momentum": np.array(2.0)}, r"^momentum=2.0 must lie in \[0, 1\)"),
        ({"dampening": 1.5}, r"dampening=1.5 must lie in \[0, 1\]"),
        (
            {"dampening": 1.5, "momentum": None},
            r"dampening=1.5 must lie in \[0, 1\]",
        ),
        ({"loss_lower_bound": 3.0}, "loss_lower_bound=3.0 .* polyak_factor"),
        (
            {"loss_lower_bound": float("nan"), "polyak_factor": 0.3},
            "^loss_lower_bound=nan must be a number",
        ),
        ({"eps": 0.0}, "eps=0.0 must be greater than 0"),
        ({"normalizer": "sqrt"}, "normalizer='sqrt' is not known.*log.*log1p.*power"),
        ({"scope": "bias"}, "scope='bias' is not known.*kernel.*layer.*function"),
        ({"missing": "skip"}, "missing='skip' is not known.*error.*keep"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        insgd(**{"learning_rate": 0.1, **options})


# A weight decay of None is allowed, and means no weight decay.
@pytest.mark.parametrize(
    ("option", "value"),
    [("learning_rate", "0.1"), ("learning_rate", None), ("weight_decay", "0.1")],
)
def test_an_option_that_is_not_a_number_is_an_error(option, value):
    with pytest.raises(TypeError, match=f"{option}=.* must be a number or a schedule"):
        insgd(**{"learning_rate": 0.1, option: value})


def test_an_injected_callable_taken_for_a_schedule_is_an_error():
    injected = optax.inject_hyperparams(scale_by_input_power)
    words = 'normalizer is a .*static_args=."normalizer",'
    with pytest.raises(TypeError, match=words):
        injected(normalizer=jnp.sqrt).init(PARAMS)
    with pytest.raises(TypeError, match='scope is a .*static_args=."scope",'):
        injected(scope=lambda path: jnp.ones(())).init(PARAMS)


def test_one_array_without_a_name_has_no_norm():
    tx = scale_by_input_power(scope=lambda path: True)
    weight = jnp.ones((2, 3))
    with pytest.raises(ValueError, match="have no input norm"):
        tx.update(weight, tx.init(weight), input_norms=norm_of(9.0))


def test_a_box_of_two_arrays_is_an_error():
    box = nn.Partitioned((jnp.ones(2), jnp.ones(3)), names=("a",))
    with pytest.raises(ValueError, match="box at dense/kernel holds 2 arrays"):
        scale_by_input_power().init({"dense": {"kernel": box}})


def test_a_narrow_gradient_is_scaled_in_float32():
    """Rounding 1 / f(P) to bfloat16 first would give different steps."""
    tx = scale_by_input_power()
    grads = {"dense": {"kernel": jnp.arange(1, 7, dtype=jnp.bfloat16).reshape(2, 3)}}
    norms = norm_of(jnp.exp(3.0))
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS, input_norms=norms)
    wanted = (jnp.arange(1, 7, dtype=jnp.float32) / 3).astype(jnp.bfloat16)
    np.testing.assert_array_equal(updates["dense"]["kernel"].ravel(), wanted)


def test_the_power_of_a_float64_weight_is_float64(x64):
    params = jax.tree.map(lambda x: x.astype(jnp.float64), PARAMS)
    tx = scale_by_input_power()
    _, state = tx.update(params, tx.init(params), params, input_norms=norm_of(9.0))
    assert state.power["dense"]["kernel"].dtype == jnp.float64


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_a_decay_out_of_range_is_an_error(decay):
    with pytest.raises(ValueError, match=rf"decay={decay} must lie in \[0, 1\)"):
        scale_by_input_power(decay)


def test_reading_the_powers_of_no_or_two_states_is_an_error():
    with pytest.raises(ValueError, match="holds no ScaleByInputPowerState"):
        input_powers(optax.sgd(0.1).init(PARAMS))
    twice = optax.chain(scale_by_input_power(), scale_by_input_power())
    with pytest.raises(ValueError, match="dense/kernel is scaled by two"):
        input_powers(twice.init(PARAMS))


@pytest.mark.parametrize("decay", [0.9, 0.0])
def test_a_layer_whose_input_died_stays_at_the_floor(decay):
    """P underflows after a thousand steps; its multiplier does not return to 1."""
    tx = scale_by_input_power(decay)
    state = tx.init(PARAMS)
    _, state = tx.update(PARAMS, state, input_norms=norm_of(50.0))

    def step(state, _):
        _, state = tx.update(PARAMS, state, input_norms=norm_of(0.0))
        return state, learning_rate_multipliers(state)["dense/kernel"]

    state, multipliers = jax.jit(lambda state: jax.lax.scan(step, state, length=1500))(
        state
    )
    np.testing.assert_allclose(multipliers[100:], 100.0, rtol=1e-6)
    assert power(state) > 0
    # Later norms are averaged as usual.
    _, state = tx.update(PARAMS, state, input_norms=norm_of(30.0))
    np.testing.assert_allclose(power(state), (1 - decay) * 30, rtol=1e-6)
