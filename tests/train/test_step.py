"""The training step, compared with its parts written out, and on several devices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import insgd_optax
from train.training import optimizers, parallel
from train.training.state import TrainState, create_state
from train.training.step import cross_entropy, least_loss, step_of, train_step

from .tiny_cnn import TinyCNN


def create_optimizer(name, scope="kernel"):
    return optimizers.create(
        name,
        0.1,
        optimizers.OptimizerConfig(weight_decay=0.01, scope=scope),
    )


def batch(size=8, dtype=np.float32):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(size, 8, 8, 1)).astype(dtype)
    return jnp.asarray(images), jnp.asarray(rng.integers(0, 3, size))


def assert_equal_to(tolerance, got, expected):
    """To `tolerance` of each array's largest entry."""

    def check(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())

    jax.tree.map(check, got, expected)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_an_insgd_step_equals_the_librarys_use_written_out(batch_norm):
    model = TinyCNN(batch_norm)
    optimizer = create_optimizer("insgd-l2")
    state = create_state(model, optimizer.tx, jax.random.key(0), (8, 8, 1))
    images, labels = batch()

    step = jax.jit(functools.partial(train_step, capture=optimizer.capture))
    new_state, metrics = step(state, (images, labels), jax.random.key(1))

    def loss_fn(params):
        with insgd_optax.capture_input_norms(p=2):
            logits, mutated = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                mutable=["batch_stats", "intermediates"],
            )
        return cross_entropy(logits, labels).mean(), (logits, mutated)

    (loss, (logits, mutated)), grads = jax.jit(
        jax.value_and_grad(loss_fn, has_aux=True)
    )(state.params)
    tx = insgd_optax.insgd(0.1, momentum=0.9, weight_decay=0.01)
    updates, _ = tx.update(
        grads,
        tx.init(state.params),
        state.params,
        input_norms=mutated["intermediates"],
    )
    # The programs are compiled separately, and round float32 differently.
    assert_equal_to(
        1e-5,
        (new_state.params, new_state.batch_stats),
        (optax.apply_updates(state.params, updates), mutated.get("batch_stats", {})),
    )
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert metrics["top1"] == np.mean(logits.argmax(-1) == labels)
    assert new_state.step == 1


def test_smoothed_labels_are_the_targets():
    logits, labels = jnp.array([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]]), jnp.array([0, 2])
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    targets = np.full((2, 3), 0.1) + 0.7 * np.eye(3)[[0, 2]]
    expected = -(targets * np.log(probabilities)).sum(-1)
    got = cross_entropy(logits, labels, 0.3)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    # The targets themselves are the best prediction.
    best = cross_entropy(jnp.log(jnp.asarray(targets)), labels, 0.3)
    np.testing.assert_allclose(best, least_loss(3, 0.3), rtol=1e-6)
    assert least_loss(3, 0) == 0


def test_a_step_smooths_labels_and_passes_on_the_loss_above_the_least():
    values = []
    tx = optax.GradientTransformationExtraArgs(
        lambda params: (),
        lambda updates, state, params=None, *, value, **_: (
            values.append(value) or (updates, state)
        ),
    )
    state = create_state(TinyCNN(False), tx, jax.random.key(0), (8, 8, 1))
    step = functools.partial(train_step, label_smoothing=0.3)

    def run(state, batch):
        return step(state, batch, jax.random.key(1))[1]["loss"], values.pop()

    images, labels = batch()
    loss, value = jax.jit(run)(state, (images, labels))
    logits = state.apply_fn({"params": state.params}, images, train=True)
    expected = float(cross_entropy(logits, labels, 0.3).mean())
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(value) == pytest.approx(expected - least_loss(3, 0.3), rel=1e-5)


def test_dropout_follows_the_key_and_differs_between_devices():
    optimizer = create_optimizer("sgd")
    model = TinyCNN(batch_norm=False, dropout=0.5)
    state = create_state(model, optimizer.tx, jax.random.key(0), (8, 8, 1))
    image, label = batch(1)

    def loss(device_key, axis_name=None):
        return train_step(state, (image, label), device_key, axis_name=axis_name)[1][
            "loss"
        ]

    losses = jax.jit(jax.vmap(loss))(jax.random.split(jax.random.key(1), 8))
    assert len(set(losses.tolist())) == 8

    # For one image and one key, eight devices report the mean loss of eight masks.
    key = jax.random.key(2)
    mapped = jax.pmap(lambda _: loss(key, "batch"), axis_name="batch", out_axes=None)(
        jnp.arange(8)
    )
    keys = jax.vmap(lambda device: jax.random.fold_in(key, device))(jnp.arange(8))
    expected = float(jax.jit(jax.vmap(loss))(keys).mean())
    assert float(mapped) == pytest.approx(expected, rel=1e-5)


def test_everything_that_devices_share_is_averaged_in_one_call(monkeypatch):
    averaged = []
    monkeypatch.setattr(
        jax.lax, "pmean", lambda tree, axis_name: averaged.append(tree) or tree
    )
    optimizer = create_optimizer("insgd-l2")
    state = create_state(TinyCNN(), optimizer.tx, jax.random.key(0), (8, 8, 1))
    step = functools.partial(
        train_step, capture=optimizer.capture, axis_name=parallel.AXIS
    )

    jax.make_jaxpr(step, axis_env=[(parallel.AXIS, 8)])(
        state, batch(), jax.random.key(1)
    )

    ((grads, norms, batch_stats, metrics),) = averaged
    assert jax.tree.structure(grads) == jax.tree.structure(state.params)
    assert set(norms) == {"Conv_0", "Dense_0"}
    assert jax.tree.structure(batch_stats) == jax.tree.structure(state.batch_stats)
    assert set(metrics) == {"loss", "top1"}


@pytest.mark.parametrize("captures", [None, True, False])
def test_zeros_of_a_step_without_a_capture_are_not_averaged(monkeypatch, captures):
    """If they were, XLA would keep the code for new covariances in the step."""
    averaged = []
    monkeypatch.setattr(
        jax.lax, "pmean", lambda tree, axis_name: averaged.append(tree) or tree
    )
    config = optimizers.OptimizerConfig(covariance_every=2)
    optimizer = optimizers.create("lms-newton", 0.1, config)
    state = create_state(TinyCNN(), optimizer.tx, jax.random.key(0), (8, 8, 1))
    step = step_of(optimizer, captures, axis_name=parallel.AXIS)

    jax.make_jaxpr(step, axis_env=[(parallel.AXIS, 8)])(
        state, batch(), jax.random.key(1)
    )

    ((_, covariances, _, _),) = averaged
    assert set(covariances) == (set() if captures is False else {"Conv_0", "Dense_0"})


def test_steps_return_a_train_state_and_compile_once():
    optimizer = create_optimizer("insgd-l2")
    state = create_state(TinyCNN(), optimizer.tx, jax.random.key(0), (8, 8, 1))
    step = jax.jit(functools.partial(train_step, capture=optimizer.capture))

    for _ in range(3):
        state, _ = step(state, batch(), jax.random.key(1))

    assert isinstance(state, TrainState)
    assert step._cache_size() == 1


def test_steps_with_and_without_a_capture_are_those_decided_at_run_time():
    config = optimizers.OptimizerConfig(covariance_every=3)
    optimizer = optimizers.create("lms-newton", 0.1, config)
    first = create_state(TinyCNN(), optimizer.tx, jax.random.key(0), (8, 8, 1))
    steps = {
        captures: jax.jit(step_of(optimizer, captures))
        for captures in (None, True, False)
    }
    state = other = first
    for seed in range(5):
        images, labels = batch()
        arrays = (images + seed, labels), jax.random.key(1)  # Another covariance.
        state, _ = steps[None](state, *arrays)
        other, _ = steps[seed % 3 == 0](other, *arrays)
        assert_equal_to(1e-5, other.opt_state, state.opt_state)
        assert_equal_to(1e-5, other.params, state.params)


def test_a_step_has_no_conditional_if_every_step_captures():
    config = optimizers.OptimizerConfig(covariance_every=1)
    optimizer = optimizers.create("lms-newton", 0.1, config)
    state = create_state(TinyCNN(), optimizer.tx, jax.random.key(0), (8, 8, 1))
    step = jax.jit(step_of(optimizer))
    compiled = step.lower(state, batch(), jax.random.key(1)).compile()
    assert not re.search(r"\bconditional\(", compiled.as_text())
