"""Optimizers by name against their references."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import insgd_optax
from train.training import optimizers
from train.training.optimizers import OptimizerConfig, rules

PAGE = Path(__file__).parents[2] / "docs" / "experiments.md"
PARAMS = {"Dense_0": {"kernel": np.array([[1.0, -2.0]]), "bias": np.array([0.5, 3.0])}}
NORMS = {"Dense_0": {"input_norm": np.full((1, 1), np.exp(4.0))}}
SETTINGS = {
    "momentum": 0.9,
    "weight_decay": 0.01,
    "scope": "kernel",
    "normalizer": "log",
}


def trajectory(tx, steps=4):
    """Parameters after some steps with gradients that change sign and size."""
    params, state = PARAMS, tx.init(PARAMS)
    for step in range(steps):
        grads = {
            "Dense_0": {
                "kernel": np.array([[0.3, -1.0]]) * (step - 1.5),
                "bias": np.array([2.0, 0.1]) * (step + 1),
            }
        }
        updates, state = tx.update(
            grads, state, params, input_norms=NORMS, value=1.0 + 0.1 * step
        )
        params = optax.apply_updates(params, updates)
    return params


def assert_close(got, expected):
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(
            got["Dense_0"][name], expected["Dense_0"][name], rtol=1e-12
        )


def test_sgd_matches_pytorchs(x64):
    got = trajectory(optimizers.create("sgd", 0.1, OptimizerConfig(**SETTINGS)).tx)
    reference = optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, 0.9))
    assert_close(got, trajectory(optax.with_extra_args_support(reference)))


def pytorch_kernel(step_fn, steps=4):
    """The kernel after some steps of a rule that gets gradients with the l2 term.

    Args:
        step_fn: (gradient, state dict, number of the step from 1) -> update / -0.1.
    """
    w, state = PARAMS["Dense_0"]["kernel"], {}
    for step in range(steps):
        g = np.array([[0.3, -1.0]]) * (step - 1.5) + 0.01 * w
        w = w - 0.1 * step_fn(g, state, step + 1)
    return w


def adam(g, state, step):
    state["m"] = 0.9 * state.get("m", 0) + 0.1 * g
    state["v"] = 0.999 * state.get("v", 0) + 0.001 * g**2
    m_hat, v_hat = state["m"] / (1 - 0.9**step), state["v"] / (1 - 0.999**step)
    return m_hat / (np.sqrt(v_hat) + 1e-8)


def adagrad(g, state, step):
    del step
    state["sum"] = state.get("sum", 0) + g**2
    return g / (np.sqrt(state["sum"]) + 1e-10)


def adadelta(g, state, step):
    del step
    state["square"] = 0.9 * state.get("square", 0) + 0.1 * g**2
    delta = g * np.sqrt(state.get("delta", 0) + 1e-6) / np.sqrt(state["square"] + 1e-6)
    state["delta"] = 0.9 * state.get("delta", 0) + 0.1 * delta**2
    return delta


def rmsprop(g, state, step):
    del step
    state["square"] = 0.99 * state.get("square", 0) + 0.01 * g**2
    return g / (np.sqrt(state["square"]) + 1e-8)


@pytest.mark.parametrize("rule", [adam, adagrad, adadelta, rmsprop])
def test_rescaling_optimizers_match_pytorchs_with_coupled_weight_decay(x64, rule):
    got = trajectory(
        optimizers.create(rule.__name__, 0.1, OptimizerConfig(**SETTINGS)).tx
    )
    np.testing.assert_allclose(
        got["Dense_0"]["kernel"], pytorch_kernel(rule), rtol=1e-12
    )


def test_adagrad_starts_at_zero(x64):
    tx = optimizers.create(
        "adagrad", 0.1, OptimizerConfig(**SETTINGS | {"weight_decay": 0.0})
    ).tx
    grads = {"Dense_0": {"kernel": np.full((1, 2), 1e-3), "bias": np.zeros(2)}}
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS, input_norms=NORMS)
    np.testing.assert_allclose(updates["Dense_0"]["kernel"], -0.1, rtol=1e-5)
    assert np.all(updates["Dense_0"]["bias"] == 0)


def test_lars_moves_each_weight_by_a_fraction_of_its_norm(x64):
    tx = optimizers.create(
        "lars", 1.0, OptimizerConfig(**SETTINGS | {"weight_decay": 0.0})
    ).tx
    grads = {"Dense_0": {"kernel": np.array([[3.0, 4.0]]), "bias": np.ones(2)}}
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS, input_norms=NORMS)
    expected = -0.001 * np.sqrt(1 + 4) * np.array([[0.6, 0.8]])
    np.testing.assert_allclose(updates["Dense_0"]["kernel"], expected, rtol=1e-12)


def test_lsalr_matches_the_librarys(x64):
    got = trajectory(optimizers.create("lsalr", 0.1, OptimizerConfig(**SETTINGS)).tx)
    reference = insgd_optax.lsalr(0.1, momentum=0.9, weight_decay=0.01)
    assert_close(got, trajectory(optax.with_extra_args_support(reference)))


def test_released_code_captures_its_own_norms():
    import flax.linen as nn

    optimizer = optimizers.create("insgd-as-released", 0.1, OptimizerConfig(**SETTINGS))
    model, x = nn.Dense(1), jnp.array([[1.0, -3.0]])
    params = model.init(np.zeros(2, np.uint32), x)["params"]
    with optimizer.capture(0):
        _, sown = model.apply({"params": params}, x, mutable=["intermediates"])
    updates, _ = optimizer.tx.update(
        params, optimizer.tx.init(params), params, input_norms=sown["intermediates"]
    )
    assert np.all(np.isfinite(updates["kernel"]))
    assert optimizer.diagnostics is None


MOMENTA = {"momentum": 0.5, "dampening": 0.25, "nesterov": True, "weight_decay": 0.01}


def test_sgd_takes_dampening_and_nesterov(x64):
    got = trajectory(optimizers.create("sgd", 0.1, OptimizerConfig(**MOMENTA)).tx)
    reference = optax.chain(
        optax.add_decayed_weights(0.01),
        insgd_optax.dampened_trace(0.5, 0.25, nesterov=True),
        optax.scale(-0.1),
    )
    assert_close(got, trajectory(optax.with_extra_args_support(reference)))


@pytest.mark.parametrize(
    ("option", "value", "name"),
    [
        (option, value, name)
        for option, value in (("momentum", 0.5), ("nesterov", True), ("dampening", 0.5))
        for name in optimizers.NAMES
        # These two need other statistics than `trajectory` gives.
        if name not in ("lms-newton", "insgd-as-released")
        if optimizers.has_option(name, option)
    ],
)
def test_an_option_changes_the_steps_of_an_optimizer_that_takes_it(
    x64, option, value, name
):
    both = [OptimizerConfig(), OptimizerConfig(**{option: value})]
    plain, changed = (
        trajectory(optimizers.create(name, 0.1, config).tx) for config in both
    )
    assert np.max(np.abs(plain["Dense_0"]["bias"] - changed["Dense_0"]["bias"])) > 1e-6


def test_the_page_lists_each_optimizer():
    (names,) = re.findall(r"^\| `NAME` \| (.*?);", PAGE.read_text(), re.MULTILINE)
    assert set(optimizers.NAMES) <= set(re.findall(r"[a-z][\w+-]+", names))


@pytest.mark.parametrize("polyak_factor", [None, 0.3])
def test_all_options_of_insgd_reach_the_library(x64, polyak_factor):
    settings = MOMENTA | {
        "eps": 20.0,
        "power_decay": 0.5,
        "polyak_factor": polyak_factor,
    }
    got = trajectory(optimizers.create("insgd-l2", 0.1, OptimizerConfig(**settings)).tx)
    assert_close(got, trajectory(insgd_optax.insgd(0.1, **settings)))
    for name in settings.keys() - {"polyak_factor"}:
        default = settings | {name: getattr(OptimizerConfig, name)}
        # P is the same at every step here: its decay has no effect.
        if name != "power_decay":
            other = trajectory(insgd_optax.insgd(0.1, **default))
            with pytest.raises(AssertionError):
                assert_close(got, other)


@pytest.mark.parametrize("name", ["sgd", "adam", "insgd-l2"])
def test_gradients_are_clipped_before_anything_else(x64, name):
    config = OptimizerConfig(clip_norm=0.5)
    got = trajectory(optimizers.create(name, 0.1, config).tx)
    plain = optimizers.create(name, 0.1, OptimizerConfig())
    clipped = optax.chain(optax.clip_by_global_norm(0.5), plain.tx)
    assert_close(got, trajectory(clipped))
    with pytest.raises(AssertionError):
        assert_close(got, trajectory(plain.tx))


def test_multipliers_are_found_in_a_state_with_clipping(x64):
    optimizer = optimizers.create("insgd-l2", 0.1, OptimizerConfig(clip_norm=0.5))
    state = optimizer.tx.init(PARAMS)
    _, state = optimizer.tx.update(PARAMS, state, PARAMS, input_norms=NORMS)
    multipliers = optimizer.diagnostics(state)["multipliers"]
    assert multipliers["Dense_0/kernel"] == pytest.approx(0.25)


def test_conv_input_selects_the_input_of_a_convolution():
    import flax.linen as nn

    model, x = nn.Conv(1, (3, 3)), jnp.ones((1, 4, 4, 1))

    def sown(conv_input):
        config = OptimizerConfig(conv_input=conv_input)
        with optimizers.create("insgd-l2", 0.1, config).capture(0):
            _, mutated = model.init_with_output(jax.random.key(0), x)
            _, mutated = model.apply(mutated, x, mutable=["intermediates"])
        return float(mutated["intermediates"]["input_norm"][0].squeeze())

    assert sown("feature_map") == 16
    assert sown("patch") == pytest.approx(100 / 16)  # 9, 6 or 4 pixels are inside.


@pytest.mark.parametrize("name", ["lms-newton", "adamw+cov"])
def test_options_limit_the_rows_and_the_size_of_the_covariance(name):
    import flax.linen as nn

    model, x = nn.Dense(2), jnp.arange(80.0).reshape(10, 8)
    params = model.init(jax.random.key(0), x)

    def sown(**options):
        optimizer = optimizers.create(name, 0.1, OptimizerConfig(**options))
        with optimizer.capture(0):
            _, mutated = model.apply(params, x, mutable=["intermediates"])
        return jax.tree.leaves(mutated)

    whole, few, small = (
        sown(),
        sown(covariance_max_rows=2),
        sown(covariance_max_dim=4),
    )
    assert [leaf.shape for leaf in whole] == [leaf.shape for leaf in few]
    assert whole[0].sum() != few[0].sum()
    # A matrix above the largest size is cut into blocks on its diagonal.
    assert (whole[0].size, small[0].size) == (8 * 8, 2 * 4 * 4)


@pytest.mark.parametrize("name", ["insgd-l1", "insgd-l2"])
@pytest.mark.parametrize("scope", ["kernel", "layer"])
@pytest.mark.parametrize("normalizer", ["log", "power", "log1p"])
def test_insgd_matches_the_librarys(x64, name, scope, normalizer):
    settings = SETTINGS | {"scope": scope, "normalizer": normalizer}
    got = trajectory(optimizers.create(name, 0.1, OptimizerConfig(**settings)).tx)
    assert_close(got, trajectory(insgd_optax.insgd(0.1, **settings)))


@pytest.mark.parametrize("name", ["sgd", "insgd-l2"])
def test_a_polyak_factor_gives_clip_by_polyak(x64, name):
    optimizer = optimizers.create(
        name, 50.0, OptimizerConfig(**SETTINGS, polyak_factor=0.5)
    )
    scaling = insgd_optax.scale_by_input_power() if name == "insgd-l2" else None
    expected = insgd_optax.clip_by_polyak(
        50.0, scaling, factor=0.5, momentum=0.9, weight_decay=0.01
    )
    assert_close(trajectory(optimizer.tx), trajectory(expected))
    _, state = optimizer.tx.update(
        PARAMS, optimizer.tx.init(PARAMS), PARAMS, input_norms=NORMS, value=1.0
    )
    assert 0 < optimizer.extra_metrics["polyak_scale"](state) < 1
    assert (
        optimizers.create(name, 50.0, OptimizerConfig(**SETTINGS)).extra_metrics == {}
    )


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in optimizers.NAMES
        if not re.search("newton|cov|white|as-rel", name)
    ],
)
def test_a_learning_rate_may_be_traced(x64, name):
    def trained(rate):
        schedule = optax.constant_schedule(rate)
        return trajectory(optimizers.create(name, schedule, OptimizerConfig()).tx, 2)

    assert_close(jax.jit(trained)(0.02), trained(0.02))


def test_optimizers_that_find_their_learning_rate_match_optax_s(x64):
    for name, reference in (
        ("momo", optax.contrib.momo(1.0, beta=0.9, weight_decay=0.01)),
        ("prodigy", optax.contrib.prodigy(1.0, weight_decay=0.01)),
        ("dadapt-adamw", optax.contrib.dadapt_adamw(1.0, weight_decay=0.01)),
    ):
        assert optimizers.default_learning_rate(name) == 1.0
        got = trajectory(optimizers.create(name, 1.0, OptimizerConfig(**SETTINGS)).tx)
        assert_close(got, trajectory(reference))


def test_a_custom_optimizer_can_be_registered(monkeypatch):
    monkeypatch.setattr(optimizers, "_OPTIMIZERS", dict(optimizers._OPTIMIZERS))

    def make(learning_rate, config, _):
        return optimizers.Optimizer(
            optax.with_extra_args_support(optax.sgd(learning_rate, config.momentum))
        )

    optimizers.register("mine", make, learning_rate=0.3, options=["momentum"])
    assert not optimizers.has_option("mine", "damping")
    assert optimizers.has_option("mine", "momentum")
    with pytest.raises(ValueError, match=r"unknown options \['warmth'\]"):
        optimizers.register("other", make, learning_rate=0.3, options=["warmth"])
    assert optimizers.default_learning_rate("mine") == 0.3
    got = trajectory(optimizers.create("mine", 0.2, OptimizerConfig(**SETTINGS)).tx)
    expected = optax.with_extra_args_support(optax.sgd(0.2, 0.9))
    assert_close(got, trajectory(expected))
    for taken in ("mine", "sgd", "insgd-l3"):
        with pytest.raises(ValueError, match=f"'{taken}' is already the name"):
            optimizers.register(taken, make, learning_rate=0.3)


@pytest.mark.parametrize(
    ("name", "power"),
    [
        ("insgd-l1", 1 + 3),
        ("insgd-l2", 1 + 9),
        ("insgd-l1.5", 1 + 3**1.5),
        ("insgd-linf", 3),
    ],
)
def test_the_capture_uses_the_norm_in_the_name(name, power):
    import flax.linen as nn

    model, x = nn.Dense(1), jnp.array([[1.0, -3.0]])
    params = model.init(np.zeros(2, np.uint32), x)
    with optimizers.create(name, 0.1, OptimizerConfig(**SETTINGS)).capture(0):
        _, sown = model.apply(params, x, mutable=["intermediates"])
    (norm,) = sown["intermediates"]["input_norm"]
    assert norm.item() == pytest.approx(power)


def test_only_optimizers_that_use_the_input_capture_it():
    captured = {
        name
        for name in optimizers.NAMES
        if optimizers.create(name, 0.1, OptimizerConfig(**SETTINGS)).capture is not None
    }
    assert captured == {
        "insgd-l1",
        "insgd-l2",
        "insgd-linf",
        "insgd-as-released",
        "lms-newton",
        "adamw+cov",
        "muon+cov",
        "muon+whitened",
    }


def sown_covariance(step):
    rows = np.array([[1.0 + step], [2.0]])
    return {
        "Dense_0": {
            "input_covariance": (
                insgd_optax.InputCovariance(
                    (jnp.asarray(rows.T @ rows).reshape(1, 1, 1, 1),), jnp.array(2.0)
                ),
            )
        }
    }


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("adamw+cov", optax.adamw),
        ("muon+cov", rules.muon),
        ("muon+whitened", rules.muon),
    ],
)
def test_the_covariance_is_applied_before_weight_decay(x64, name, rule):
    # One input has only one direction: only the place of weight decay can differ.
    def run(tx):
        params, state = PARAMS, tx.init(PARAMS)
        for step in range(3):
            grads = jax.tree.map(lambda w, step=step: 0.1 * w * (step - 1.5), PARAMS)
            updates, state = tx.update(
                grads, state, params, input_covariances=sown_covariance(step)
            )
            params = optax.apply_updates(params, updates)
        return params

    got = run(optimizers.create(name, 0.1, OptimizerConfig(**SETTINGS)).tx)
    decoupled = optax.chain(
        rule(1.0, weight_decay=0.0),
        optax.scale(-1.0),
        optax.add_decayed_weights(0.01),
        optax.scale_by_learning_rate(0.1),
    )
    expected = run(optax.with_extra_args_support(decoupled))
    for weight in ("kernel", "bias"):
        np.testing.assert_allclose(
            got["Dense_0"][weight], expected["Dense_0"][weight], rtol=1e-9
        )


@pytest.mark.parametrize("name", ["sdg", "insgd", "insgd-l0.5", "insgd-lx", "insgd-l"])
def test_an_unknown_name_is_an_error_that_lists_the_names(name):
    with pytest.raises(ValueError, match=f"'{name}'.*sgd.*insgd-l2.*insgd-lP"):
        optimizers.check_name(name)
