"""A table of optimizers, and tests of the properties that all of them share.

A row holds what the tests need to know about its optimizer; no test checks a name.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from insgd_optax import (
    MultiSteps,
    ScaleByInputPowerState,
    clip_by_polyak,
    input_powers,
    insgd,
    insgd_as_released,
    lms_newton,
    lsalr,
    nlms,
    scale_by_input_covariance,
    scale_by_input_power,
    scale_by_lsalr,
    whiten_inputs,
)
from insgd_optax._covariance import InputCovariance
from insgd_optax._paths import states_of


@dataclasses.dataclass(frozen=True, eq=False)  # Each row is a cache key of its own.
class Row:
    """An optimizer under test."""

    factory: Callable[..., optax.GradientTransformation]
    options: dict[str, Any]  # numbers, which may be injected
    update_kwargs: Callable[[int], dict[str, Any]]  # from the number of the step
    static_args: tuple[str, ...] = ()
    static_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    in_multi_steps: bool = True  # whether `MultiSteps` supports its norms
    # Whether `init` takes shapes: optax.inject_hyperparams of 0.2.8 needs arrays.
    takes_shapes: bool = True
    may_be_injected: bool = True
    drops_bad_gradients: bool = False  # its update is zero, and its state advances

    def make(self):
        return self.factory(**self.options, **self.static_options)


def norms(step):
    value = 10.0 + 5.0 * step
    return {
        "input_norms": {
            "a": {"input_norm": (jnp.full((1, 1), value),), "other": jnp.ones(3)},
            "b": {"c": {"input_norm": (jnp.array(2 * value), jnp.array(value))}},
        }
    }


def released_norms(step):
    value = 10.0 + 5.0 * step
    return {
        "input_norms": {
            "a": {"released_input_norm": (jnp.full((8, 1), value),)},
            "b": {"c": {"released_input_norm": (jnp.full((1, 1, 1), 2 * value),)}},
        }
    }


def covariances(step):
    """Covariances of 4 rows each, with one direction that grows."""

    def of(*inputs):
        size = math.prod(inputs)
        matrix = jnp.diag(jnp.arange(1.0, size + 1.0)).at[0, 0].add(step)
        layout = (*inputs, 1, *inputs, 1)
        return (InputCovariance((matrix.reshape(layout),), jnp.array(4.0)),)

    sown = {
        "a": {"input_covariance": of(8)},
        "b": {"c": {"input_covariance": of(4, 8)}},
    }
    return {"input_covariances": {"intermediates": sown}}


def no_norms(step):
    del step
    return {}


def loss(step):
    return {"value": jnp.array(1.0 + 0.5 * step)}


def norms_and_loss(step):
    return norms(step) | loss(step)


def whitened_momentum(decay, damping):
    return whiten_inputs(optax.trace(0.9), decay, damping=damping)


ROWS = {
    "scale_by_input_power": Row(
        scale_by_input_power, {"decay": 0.9, "eps": 0.01}, norms
    ),
    "scale_by_input_power, layer, log1p": Row(
        scale_by_input_power,
        {"decay": 0.9},
        norms,
        static_options={"scope": "layer", "normalizer": "log1p"},
    ),
    "scale_by_input_power, callable": Row(
        scale_by_input_power,
        {"decay": 0.0},
        norms,
        static_args=("normalizer", "scope"),
        static_options={
            "normalizer": jnp.sqrt,
            "scope": lambda path: path == ("a", "kernel"),
        },
    ),
    "insgd": Row(insgd, {"learning_rate": 0.1}, norms),
    "insgd, all options": Row(
        insgd,
        {
            "learning_rate": 0.1,
            "power_decay": 0.5,
            "momentum": 0.9,
            "dampening": 0.9,
            "weight_decay": 0.01,
            "eps": 0.1,
        },
        norms,
        static_options={"nesterov": True, "scope": "layer"},
    ),
    # Learning rates at which the bound is active.
    "insgd, bounded": Row(
        insgd,
        {
            "learning_rate": 50.0,
            "momentum": 0.9,
            "weight_decay": 0.01,
            "polyak_factor": 0.5,
            "loss_lower_bound": 0.1,
        },
        norms_and_loss,
        drops_bad_gradients=True,
    ),
    "clip_by_polyak": Row(
        clip_by_polyak,
        {"learning_rate": 10.0, "factor": 2.0, "momentum": 0.9, "weight_decay": 0.01},
        loss,
        drops_bad_gradients=True,
    ),
    "inject_hyperparams(insgd)": Row(
        optax.inject_hyperparams(insgd),
        {"learning_rate": 0.1, "momentum": 0.8},
        norms,
        may_be_injected=False,
        takes_shapes=False,
    ),
    "scale_by_input_covariance": Row(
        scale_by_input_covariance, {"decay": 0.5, "damping": 0.1}, covariances
    ),
    "lms_newton": Row(
        lms_newton,
        {"learning_rate": 0.1, "damping": 0.5, "weight_decay": 0.01},
        covariances,
    ),
    "whiten_inputs": Row(
        whitened_momentum, {"decay": 0.5, "damping": 0.1}, covariances
    ),
    "nlms": Row(nlms, {"learning_rate": 1.0, "eps": 0.1}, norms),
    "insgd_as_released": Row(
        insgd_as_released,
        {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.01},
        released_norms,
        in_multi_steps=False,
    ),
    "scale_by_lsalr": Row(scale_by_lsalr, {}, no_norms),
    "lsalr": Row(
        lsalr,
        {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.01},
        no_norms,
    ),
}

each_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())


def powers_of(state):
    return input_powers(state) if states_of(state, ScaleByInputPowerState) else {}


def make_params(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    tree = {
        "a": {"kernel": rng.normal(size=(8, 4)), "bias": rng.normal(size=4)},
        "b": {"c": {"kernel": rng.normal(size=(4, 8, 2))}},
        "embedding": rng.normal(size=(5, 4)),
    }
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


def grads_at(params, step):
    return jax.tree.map(lambda w: (w + step).astype(w.dtype), params)


def run(tx, params, kwargs_at, steps=3, jit=True):
    """Takes steps; returns the parameters and the state."""

    def step_fn(params, state, grads, kwargs):
        updates, state = tx.update(grads, state, params, **kwargs)
        return optax.apply_updates(params, updates), state

    step_fn = jax.jit(step_fn) if jit else step_fn
    state = tx.init(params)
    for step in range(steps):
        params, state = step_fn(params, state, grads_at(params, step), kwargs_at(step))
    return params, state


@functools.cache
def plain_run(row, part=None):
    """The result of a row's steps, for a part of the network or for all of it."""
    params = make_params()
    return run(row.make(), {part: params[part]} if part else params, row.update_kwargs)


def assert_close(actual, expected, rtol=1e-6):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol, 1e-6), actual, expected
    )


def specs(tree):
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)


@each_row
def test_jit_agrees_with_eager(row):
    params = make_params()
    eager = run(row.make(), params, row.update_kwargs, jit=False)
    assert_close(plain_run(row), eager)


@each_row
def test_no_recompilation_on_the_second_call(row):
    tx, params = row.make(), make_params()
    count = 0

    @jax.jit
    def step_fn(params, state, grads, kwargs):
        nonlocal count
        count += 1
        updates, state = tx.update(grads, state, params, **kwargs)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for step in range(3):
        kwargs = row.update_kwargs(step)
        params, state = step_fn(params, state, grads_at(params, step), kwargs)
    assert count == 1
    assert step_fn._cache_size() == 1


@each_row
def test_scan_agrees_with_a_loop(row):
    tx, params = row.make(), make_params()
    kwargs = [row.update_kwargs(step) for step in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *kwargs)

    def body(carry, inputs):
        params, state = carry
        step, kwargs = inputs
        grads = jax.tree.map(lambda w: w + step.astype(w.dtype), params)
        updates, state = tx.update(grads, state, params, **kwargs)
        return (optax.apply_updates(params, updates), state), None

    carry = (params, tx.init(params))
    carry, _ = jax.lax.scan(body, carry, (jnp.arange(3), stacked))
    assert_close(carry, plain_run(row))


@each_row
def test_the_state_is_stable_under_cond(row):
    tx, params = row.make(), make_params()
    state = tx.init(params)
    kwargs = row.update_kwargs(0)

    def update(params, state):
        updates, state = tx.update(params, state, params, **kwargs)
        return updates, state

    def skip(params, state):
        return jax.tree.map(jnp.zeros_like, params), state

    updates, after = jax.eval_shape(
        lambda taken: jax.lax.cond(taken, update, skip, params, state), True
    )
    assert specs(after) == specs(state)
    assert specs(updates) == specs(params)


@each_row
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_updates_have_the_gradients_dtype(row, dtype):
    tx, params = row.make(), make_params(dtype)
    state = tx.init(params)
    kwargs = row.update_kwargs(0)
    updates, after = jax.eval_shape(lambda: tx.update(params, state, params, **kwargs))
    assert specs(updates) == specs(params)
    assert specs(after) == specs(state)
    for power in powers_of(after).values():
        assert power.dtype == jnp.float32


@each_row
def test_float64_weights_have_float64_powers(row, x64):
    tx, params = row.make(), make_params(jnp.float64)
    _, state = run(tx, params, row.update_kwargs)
    for power in powers_of(state).values():
        assert power.dtype == jnp.float64


@each_row
def test_chains_with_transforms_that_take_no_norms(row):
    params = make_params()
    tx = optax.chain(optax.clip_by_global_norm(1e9), row.make(), optax.scale(1.0))
    named = optax.named_chain(("clip", optax.clip(1e9)), ("rule", row.make()))
    expected, _ = plain_run(row)
    assert_close(run(tx, params, row.update_kwargs)[0], expected)
    assert_close(run(named, params, row.update_kwargs)[0], expected)


@pytest.mark.parametrize(
    "row",
    [row for row in ROWS.values() if row.may_be_injected],
    ids=[name for name, row in ROWS.items() if row.may_be_injected],
)
def test_injected_hyperparameters_give_the_same_steps(row):
    params = make_params()
    injected = optax.inject_hyperparams(row.factory, static_args=row.static_args)
    tx = injected(**row.options, **row.static_options)
    actual, state = run(tx, params, row.update_kwargs)
    expected, _ = plain_run(row)
    assert_close(actual, expected, 1e-5)
    assert set(row.options) <= set(state.hyperparams)


@pytest.mark.parametrize(
    ("factory", "kwargs_at"),
    [
        (insgd, norms),
        (lambda learning_rate=0.1: insgd(learning_rate), norms),
        (clip_by_polyak, loss),
        (lms_newton, covariances),
        (lsalr, no_norms),
        (insgd_as_released, released_norms),
    ],
)
def test_injected_defaults_need_no_parameters_and_keep_the_state(factory, kwargs_at):
    """As in optax's own tests; the state is that of the plain optimizer."""
    params = make_params()
    plain, injected = factory(0.1), optax.inject_hyperparams(factory)(0.1)
    state = injected.init(params)
    inner = plain.init(params)
    assert jax.tree.structure(state.inner_state) == jax.tree.structure(inner)
    updates, _ = injected.update(params, state, **kwargs_at(0))
    expected, _ = plain.update(params, inner, **kwargs_at(0))
    assert_close(updates, expected)


@each_row
def test_masked_weights_pass_through(row):
    params = make_params()
    mask = jax.tree.map(lambda w: w.ndim != 3, params)
    tx = optax.masked(row.make(), mask)
    state = tx.init(params)
    kwargs = row.update_kwargs(0)
    updates, state = tx.update(params, state, params, **kwargs)
    seen = {name: params[name] for name in ("a", "embedding")}
    alone, _ = row.make().update(seen, row.make().init(seen), seen, **kwargs)
    np.testing.assert_array_equal(
        updates["b"]["c"]["kernel"], params["b"]["c"]["kernel"]
    )
    np.testing.assert_array_equal(updates["a"]["kernel"], alone["a"]["kernel"])
    assert "b/c/kernel" not in powers_of(state)


@each_row
def test_partition_into_two_optimizers_and_a_frozen_part(row):
    params = make_params()
    labels = {"a": "one", "b": "two", "embedding": "frozen"}
    tx = optax.partition(
        {"one": row.make(), "two": optax.sgd(0.1), "frozen": optax.set_to_zero()},
        labels,
    )
    # A transform that finds nothing to scale in its part is an error.
    in_scope = powers_of(row.make().init(params))
    if not in_scope or "b/c/kernel" in in_scope:
        tx = optax.partition(
            {"one": row.make(), "two": row.make(), "frozen": optax.set_to_zero()},
            labels,
        )
    actual, state = run(tx, params, row.update_kwargs)
    expected, _ = plain_run(row, "a")
    _, expected_state = plain_run(row)
    assert_close(actual["a"], expected["a"])
    np.testing.assert_array_equal(actual["embedding"], params["embedding"])
    assert set(powers_of(state)) == set(powers_of(expected_state))


@each_row
def test_freeze_leaves_the_other_part_unchanged(row):
    params = make_params()
    frozen = {"a": False, "b": True, "embedding": True}
    mask = {k: jax.tree.map(lambda _, v=v: v, params[k]) for k, v in frozen.items()}
    tx = optax.chain(
        optax.masked(row.make(), jax.tree.map(lambda m: not m, mask)),
        optax.transforms.freeze(mask),
    )
    actual, _ = run(tx, params, row.update_kwargs)
    expected, _ = plain_run(row, "a")
    assert_close(actual["a"], expected["a"])
    assert_close(actual["b"], params["b"])


@each_row
def test_apply_if_finite_skips_a_bad_gradient(row):
    tx, params = optax.apply_if_finite(row.make(), 5), make_params()
    state = tx.init(params)
    bad = jax.tree.map(lambda w: w * jnp.nan, params)
    updates, state = tx.update(bad, state, params, **row.update_kwargs(0))
    assert_close(updates, jax.tree.map(jnp.zeros_like, params))
    if not row.drops_bad_gradients:
        assert all(power == 0 for power in powers_of(state).values())
    updates, state = tx.update(params, state, params, **row.update_kwargs(0))
    plain = row.make()
    expected, _ = plain.update(
        params, plain.init(params), params, **row.update_kwargs(0)
    )
    assert_close(updates, expected)


@pytest.mark.parametrize(
    "name", [name for name, row in ROWS.items() if row.in_multi_steps]
)
def test_multi_steps_takes_the_mean(name):
    row = ROWS[name]
    params = make_params()
    tx = MultiSteps(row.make(), every_k_schedule=2)
    state = tx.init(params)
    for step in (0, 1):
        grads = grads_at(params, step)
        updates, state = tx.update(grads, state, params, **row.update_kwargs(step))
        assert bool(tx.has_updated(state)) == (step == 1)
        assert specs(updates) == specs(params)
    mean = jax.tree.map(
        lambda a, b: (a + b) / 2, row.update_kwargs(0), row.update_kwargs(1)
    )
    inner = row.make()
    expected, _ = inner.update(
        grads_at(params, 0.5), inner.init(params), params, **mean
    )
    assert_close(updates, expected, 1e-5)


@each_row
def test_init_works_on_shapes_and_under_eval_shape(row):
    params, tx = make_params(), row.make()
    abstract = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype), params)
    if row.takes_shapes:
        assert specs(tx.init(abstract)) == specs(tx.init(params))
    assert specs(jax.eval_shape(tx.init, params)) == specs(tx.init(params))


@each_row
def test_donated_buffers_give_the_same_steps(row):
    tx, params = row.make(), make_params()

    def step_fn(params, state, grads, kwargs):
        updates, state = tx.update(grads, state, params, **kwargs)
        return optax.apply_updates(params, updates), state

    step_fn = jax.jit(step_fn, donate_argnums=(0, 1))
    params = jax.tree.map(jnp.copy, params)
    state = tx.init(params)
    for step in range(3):
        grads = grads_at(params, step)
        params, state = step_fn(params, state, grads, row.update_kwargs(step))
    assert_close((params, state), plain_run(row))


@each_row
def test_updates_sharded_over_eight_devices_are_the_same(row):
    """The weights are sharded, and `optax.tree.map_params` replicates P."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    tx, params = row.make(), make_params()
    by_rank = {
        1: PartitionSpec("x"),
        2: PartitionSpec(None, "y"),
        3: PartitionSpec("x", "y"),
    }
    shardings = jax.tree.map(lambda w: NamedSharding(mesh, by_rank[w.ndim]), params)
    replicated = NamedSharding(mesh, PartitionSpec())
    state = tx.init(params)
    state_shardings = optax.tree.map_params(
        tx,
        lambda _, sharding: sharding,
        state,
        shardings,
        transform_non_params=lambda _: replicated,
    )
    step_fn = jax.jit(
        lambda params, state, kwargs: tx.update(params, state, params, **kwargs),
        in_shardings=(shardings, state_shardings, replicated),
        out_shardings=(shardings, state_shardings),
    )
    placed = jax.device_put(params, shardings)
    placed_state = jax.device_put(state, state_shardings)
    updates, after = step_fn(placed, placed_state, row.update_kwargs(0))
    expected = tx.update(params, state, params, **row.update_kwargs(0))
    assert_close((updates, after), expected)
    assert updates["a"]["kernel"].sharding.is_equivalent_to(shardings["a"]["kernel"], 2)
    for power in powers_of(after).values():
        assert power.sharding.is_fully_replicated


# Injected numbers are arrays: optax multiplies them as they are, and checks no range.
@pytest.mark.parametrize(
    "row",
    [row for row in ROWS.values() if row.may_be_injected],
    ids=[name for name, row in ROWS.items() if row.may_be_injected],
)
def test_updates_work_under_strict_dtype_promotion(row):
    """No implicit promotion, except optax's own of injected numbers."""
    tx, params = row.make(), make_params(jnp.bfloat16)
    kwargs = row.update_kwargs(0)
    with jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(lambda: tx.update(params, tx.init(params), params, **kwargs))


@pytest.mark.parametrize(
    ("name", "option"),
    [
        (name, option)
        for name, row in ROWS.items()
        for option in ("learning_rate", "weight_decay")
        if option in row.options and row.may_be_injected
    ],
)
def test_a_negative_rate_is_refused(name, option):
    row = ROWS[name]
    options = {**row.options, **row.static_options, option: -0.1}
    with pytest.raises(ValueError, match=f"{option}=-0.1 must be at least 0"):
        row.factory(**options)


@each_row
def test_extra_arguments_of_other_transforms_are_ignored(row):
    tx, params = row.make(), make_params()
    tx = optax.with_extra_args_support(tx)
    others = {"grad": params, "value": 1.0}
    kwargs = others | row.update_kwargs(0)
    jax.eval_shape(lambda: tx.update(params, tx.init(params), params, **kwargs))
