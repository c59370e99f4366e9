"""Training utilities: TrainState, MultiSteps, value_and_grad; memory of a step."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training import train_state

from insgd_optax import (
    MultiSteps,
    TrainState,
    capture_input_norms,
    input_norm_shapes,
    input_powers,
    insgd,
    value_and_grad_with_input_norms,
)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


X = 3 * jax.random.normal(jax.random.key(0), (12, 6, 6, 2))
PARAMS = Net().init(jax.random.key(1), X)["params"]


def loss_fn(params, x):
    y, variables = Net().apply({"params": params}, x, mutable=["intermediates"])
    return jnp.mean(jnp.sum(jnp.sin(y), axis=1)), variables


def grads_and_norms(params, x):
    with capture_input_norms():
        grads, variables = jax.grad(loss_fn, has_aux=True)(params, x)
    return grads, variables["intermediates"]


def assert_close(actual, expected, tolerance=1e-5):
    """To `tolerance` of each array's largest entry."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, 0, tolerance * np.abs(b).max()),
        actual,
        expected,
    )


def test_train_state_passes_the_norms_on():
    tx = insgd(0.1, weight_decay=0.01)
    state = TrainState.create(apply_fn=Net().apply, params=PARAMS, tx=tx)
    grads, norms = grads_and_norms(PARAMS, X)
    new = jax.jit(lambda s: s.apply_gradients(grads=grads, input_norms=norms))(state)
    updates, opt_state = tx.update(grads, tx.init(PARAMS), PARAMS, input_norms=norms)
    assert_close(new.params, optax.apply_updates(PARAMS, updates))
    assert_close(new.opt_state, opt_state)
    assert new.step == 1
    assert new.tx is tx
    # Flax's own TrainState treats them as a field.
    flax_state = train_state.TrainState.create(
        apply_fn=Net().apply, params=PARAMS, tx=tx
    )
    with pytest.raises(Exception, match="input_norms"):
        flax_state.apply_gradients(grads=grads, input_norms=norms)
    with pytest.raises(ValueError, match="input_norms is missing"):
        state.apply_gradients(grads=grads)


def test_train_state_drops_norms_that_the_optimizer_does_not_take():
    state = TrainState.create(apply_fn=Net().apply, params=PARAMS, tx=optax.adam(0.1))
    grads, norms = grads_and_norms(PARAMS, X)
    with_norms = state.apply_gradients(grads=grads, input_norms=norms)
    assert_close(with_norms.params, state.apply_gradients(grads=grads).params)


def test_train_state_replaces_other_fields():
    class WithStats(TrainState):
        batch_stats: dict

    state = WithStats.create(
        apply_fn=None, params=PARAMS, tx=insgd(0.1), batch_stats={"mean": 0}
    )
    grads, norms = grads_and_norms(PARAMS, X)
    new = state.apply_gradients(grads=grads, input_norms=norms, batch_stats={"mean": 1})
    assert isinstance(new, WithStats)
    assert new.batch_stats == {"mean": 1}


@pytest.mark.parametrize("has_aux", [False, True])
def test_value_and_grad_separates_the_norms(has_aux):
    def loss(params, x, *, scale):
        value, variables = loss_fn(params, x)
        variables = {**variables, "batch_stats": {"mean": 1}}
        variables["intermediates"]["mine"] = {"features": x}
        return scale * value, (variables, "aux") if has_aux else variables

    value_and_grad = value_and_grad_with_input_norms(loss, has_aux=has_aux)
    (value, aux), grads, norms = value_and_grad(PARAMS, X, scale=2.0)
    variables = aux[0] if has_aux else aux
    assert not has_aux or aux[1] == "aux"
    assert variables["batch_stats"] == {"mean": 1}
    assert list(variables["intermediates"]) == ["mine"]
    expected, expected_norms = grads_and_norms(PARAMS, X)
    assert_close(grads, jax.tree.map(lambda g: 2 * g, expected))
    assert_close(norms, expected_norms)
    np.testing.assert_allclose(value, 2 * loss_fn(PARAMS, X)[0], rtol=1e-6)


def test_a_loss_that_returns_no_intermediates_is_an_error():
    def loss(params):
        return jnp.sum(params), {"batch_stats": {}}

    with pytest.raises(ValueError, match="returned no 'intermediates': it must return"):
        value_and_grad_with_input_norms(loss)(jnp.ones(2))


@pytest.mark.parametrize("steps", [2, 3])
def test_micro_batches_equal_the_whole_batch(steps):
    whole, micro = insgd(0.1, weight_decay=1e-3), None
    micro = MultiSteps(insgd(0.1, weight_decay=1e-3), every_k_schedule=steps)
    params, state = PARAMS, whole.init(PARAMS)
    micro_params, micro_state = PARAMS, micro.init(PARAMS)
    update = jax.jit(micro.update)
    for _ in range(3):
        grads, norms = grads_and_norms(params, X)
        updates, state = whole.update(grads, state, params, input_norms=norms)
        params = optax.apply_updates(params, updates)
        for part in jnp.split(X, steps):
            grads, norms = grads_and_norms(micro_params, part)
            updates, micro_state = update(
                grads, micro_state, micro_params, input_norms=norms
            )
            micro_params = optax.apply_updates(micro_params, updates)
        assert_close(micro_params, params)
        assert_close(input_powers(micro_state), input_powers(state))


def test_summed_gradients_come_with_mean_norms():
    tx = MultiSteps(insgd(0.1), 2, use_grad_mean=False)
    state = tx.init(PARAMS)
    for part in jnp.split(X, 2):
        grads, norms = grads_and_norms(PARAMS, part)
        updates, state = tx.update(grads, state, PARAMS, input_norms=norms)
    grads, norms = grads_and_norms(PARAMS, X)
    whole = insgd(0.1)
    doubled = jax.tree.map(lambda g: 2 * g, grads)
    expected, _ = whole.update(doubled, whole.init(PARAMS), PARAMS, input_norms=norms)
    assert_close(updates, expected, 1e-5)


def test_a_skipped_micro_batch_skips_its_norms():
    tx = MultiSteps(insgd(0.1), 2, should_skip_update_fn=optax.skip_not_finite)
    params = {"dense": {"kernel": jnp.ones((2, 2))}}
    state = tx.init(params)
    bad = {"dense": {"kernel": jnp.full((2, 2), jnp.nan)}}
    for grads, norm in [(params, 10.0), (bad, 1e6), (params, 30.0)]:
        norms = {"dense": {"input_norm": jnp.array(norm)}}
        updates, state = tx.update(grads, state, params, input_norms=norms)
    assert tx.has_updated(state)
    np.testing.assert_allclose(input_powers(state)["dense/kernel"], 20.0, rtol=1e-6)
    assert np.isfinite(updates["dense"]["kernel"]).all()


def test_a_norm_that_is_not_finite_is_left_out_of_the_mean():
    tx = MultiSteps(insgd(0.1), 2)
    params = {"dense": {"kernel": jnp.ones((2, 2))}}
    state = tx.init(params)
    for expected, pair in [(10.0, (np.inf, 10.0)), (10.0, (np.nan, np.inf))]:
        for norm in pair:
            norms = {"dense": {"input_norm": jnp.array(norm)}}
            _, state = tx.update(params, state, params, input_norms=norms)
        np.testing.assert_allclose(input_powers(state)["dense/kernel"], expected, 1e-6)


@pytest.mark.parametrize("absent_at", [0, 1, 2])
def test_a_norm_is_averaged_over_the_micro_batches_that_have_it(absent_at):
    """Without any, the layer's P is unchanged."""
    params = {"a": {"kernel": jnp.ones((2, 2))}, "b": {"kernel": jnp.ones((2, 2))}}
    tx = MultiSteps(insgd(0.1, missing="keep"), 2)
    state = tx.init(params)
    for step in range(2):
        norms = {"a": {"input_norm": jnp.array(10.0)}}
        if absent_at not in (step, 2):
            norms["b"] = {"input_norm": jnp.array(50.0)}
        _, state = tx.update(params, state, params, input_norms=norms)
    powers = input_powers(state)
    np.testing.assert_allclose(powers["a/kernel"], 10.0, rtol=1e-6)
    np.testing.assert_allclose(powers["b/kernel"], 0 if absent_at == 2 else 50, 1e-6)


def test_map_params_replicates_the_statistics_of_multi_steps():
    tx = MultiSteps(insgd(0.1), 2)
    marked = optax.tree.map_params(
        tx,
        lambda _: "like params",
        tx.init(PARAMS),
        transform_non_params=lambda _: "replicated",
    )
    grads, norms, losses, covariances = marked.acc_grads
    assert set(jax.tree.leaves(grads)) == {"like params"}
    assert norms == losses == covariances == "replicated"
    assert marked.inner_opt_state[0].power == "replicated"


def test_stacked_powers_accumulate_in_their_shape():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.relu(nn.Dense(4)(x)), None

    axes = {"params": 0, "intermediates": 0}
    model = nn.scan(Block, axes, split_rngs={"params": True}, length=3)()
    x = jax.random.normal(jax.random.key(0), (4, 4))
    params = model.init(jax.random.key(0), x, None)["params"]

    def norms_of(x):
        with capture_input_norms():
            _, sown = model.apply(
                {"params": params}, x, None, mutable=["intermediates"]
            )
        return sown["intermediates"]

    with capture_input_norms():
        like = input_norm_shapes(model, jax.random.key(0), x, None)
    tx = MultiSteps(insgd(0.1, input_norms_like=like, scope="layer"), 2)
    state = tx.init(params)
    for part in jnp.split(x, 2):
        _, state = tx.update(params, state, params, input_norms=norms_of(part))
    expected = norms_of(x)["Dense_0"]["input_norm"][0]
    np.testing.assert_allclose(input_powers(state)["Dense_0/kernel"], expected, 1e-5)
    np.testing.assert_allclose(
        input_powers(state)["Dense_0/bias"], expected[..., 0], 1e-5
    )


def test_multi_steps_needs_norms_only_if_the_optimizer_does():
    tx = MultiSteps(insgd(0.1), 2)
    with pytest.raises(ValueError, match="input_norms is missing"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="no input norm"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS, input_norms={})
    plain = MultiSteps(optax.sgd(0.1), 2)
    state = plain.init(PARAMS)
    for _ in range(2):
        updates, state = plain.update(PARAMS, state, PARAMS)
    assert_close(updates, jax.tree.map(lambda w: -0.1 * w, PARAMS))


def test_multi_steps_keeps_float64_precision(x64):
    params = {"dense": {"kernel": jnp.ones((2, 2), jnp.float64)}}
    tx = MultiSteps(insgd(0.1, momentum=None), 2)
    state = tx.init(params)
    for grad, norm in [(1.0, 7.0), (1 + 1e-10, 9.0)]:
        grads = {"dense": {"kernel": jnp.full((2, 2), grad)}}
        norms = {"dense": {"input_norm": jnp.array(norm)}}
        updates, state = tx.update(grads, state, params, input_norms=norms)
    expected = -0.1 * (1 + 0.5e-10) / np.log(8.0)
    np.testing.assert_allclose(updates["dense"]["kernel"], expected, rtol=1e-14)


def test_a_train_state_trains_with_multi_steps():
    tx = MultiSteps(insgd(0.1), 2)
    for each in (tx, tx.gradient_transformation()):
        state = TrainState.create(apply_fn=None, params=PARAMS, tx=each)
        for part in jnp.split(X, 2):
            grads, norms = grads_and_norms(PARAMS, part)
            state = state.apply_gradients(grads=grads, input_norms=norms)
        assert not np.allclose(
            state.params["Dense_0"]["kernel"], PARAMS["Dense_0"]["kernel"]
        )


def test_a_step_needs_no_more_temporary_memory_than_sgd():
    """Temporary memory of the paper's custom CNN, from the compiled program."""
    # A checkout has the networks; the library's source archive does not.
    models = pytest.importorskip("models")
    model = models.create("custom_cnn", num_classes=10)
    x = jnp.zeros((128, 32, 32, 3))
    variables = jax.jit(model.init, static_argnums=2)(jax.random.key(0), x, False)

    def temporary_bytes(tx, p):
        def loss_fn(params):
            mutable = ["batch_stats", "intermediates"]
            logits, new = model.apply(
                {**variables, "params": params},
                x,
                True,
                mutable=mutable,
                rngs={"dropout": jax.random.key(1)},
            )
            return jnp.mean(logits**2), new

        def step(params, state):
            if p is None:
                (_, new), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
                updates, state = tx.update(grads, state, params)
            else:
                with capture_input_norms(p):
                    (_, new), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
                norms = new["intermediates"]
                updates, state = tx.update(grads, state, params, input_norms=norms)
            return optax.apply_updates(params, updates), state, new["batch_stats"]

        params = variables["params"]
        compiled = jax.jit(step).lower(params, tx.init(params)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    sgd = temporary_bytes(optax.sgd(0.1, momentum=0.9), None)
    for p in (1, 2):
        assert temporary_bytes(insgd(0.1), p) <= 1.01 * sgd
