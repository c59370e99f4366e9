"""The covariance rule: special cases, a NumPy reference, and difficult inputs."""

import contextlib
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from insgd_optax import (
    InputCovariance,
    capture_input_covariances,
    covariance_condition_numbers,
    covariance_cosines,
    input_covariance_shapes,
    lms_newton,
    nlms_filter,
    scale_by_input_covariance,
    scale_by_input_power,
    sow_input_covariance,
    whiten_inputs,
)
from insgd_optax._covariance import checked
from tests.insgd_optax.references.input_covariance_reference import Reference


def sown_of(rows, kernel_rank=2, dtype=None):
    """The value that a layer with a (d, m) kernel sows for these input vectors."""
    rows = jnp.asarray(rows, dtype)
    d = rows.shape[1]
    product = (rows.T @ rows).reshape(d, 1, d, 1)
    return {
        "input_covariance": (
            InputCovariance((product,), jnp.asarray(float(len(rows)), rows.dtype)),
        )
    }


def jit_apply(model):
    """Compiles `model.apply` as one program: op-by-op compilation is slow."""
    return jax.jit(model.apply, static_argnames="mutable")


def trained(tx, x, targets, order=1):
    """The weights of one linear neuron after each step, of `order` samples each."""
    model = nn.Dense(1, use_bias=False, param_dtype=x.dtype)
    params = {"kernel": jnp.zeros((x.shape[1], 1), x.dtype)}

    def loss_fn(params, rows, d):
        with capture_input_covariances():
            y, sown = model.apply({"params": params}, rows, mutable=("intermediates",))
        return 0.5 * jnp.mean((d - y[:, 0]) ** 2), sown

    @jax.jit
    def step(params, state, rows, d):
        grads, sown = jax.grad(loss_fn, has_aux=True)(params, rows, d)
        updates, state = tx.update(grads, state, params, input_covariances=sown)
        return optax.apply_updates(params, updates), state

    state, weights = tx.init(params), []
    for t in range(order - 1, len(x)):
        rows = slice(t - order + 1, t + 1)
        params, state = step(params, state, x[rows], targets[rows])
        weights.append(params["kernel"][:, 0])
    return np.stack(weights)


@pytest.fixture
def stream(x64):
    rng = np.random.default_rng(0)
    u = np.convolve(rng.normal(size=63), [1.0, 0.8, 0.3], "valid")
    x = np.stack([u[t - 3 : t + 1][::-1] for t in range(3, len(u))])
    d = x @ [0.5, -1.0, 0.25, 0.1] + 0.01 * rng.normal(size=len(x))
    return jnp.asarray(u), jnp.asarray(x), jnp.asarray(d)


PLAIN = {"damping": 0.0, "preserve_norm": False}


def test_one_sample_without_memory_is_nlms(stream):
    _, x, d = stream
    tx = optax.chain(
        scale_by_input_covariance(0.0, eps=0.1, **PLAIN),
        optax.scale_by_learning_rate(0.5),
    )
    weights = np.zeros(4)
    for t, got in enumerate(trained(tx, x, d)):
        error = d[t] - weights @ x[t]
        weights = weights + 0.5 * error * x[t] / (0.1 + x[t] @ x[t])
        np.testing.assert_allclose(got, weights, rtol=1e-10, atol=1e-12)


def test_one_sample_without_memory_matches_nlms_filter(stream):
    u, _, _ = stream
    # The filter starts on zeros before the signal.
    padded = np.concatenate([np.zeros(3), u])
    x = jnp.asarray(np.stack([padded[t : t + 4][::-1] for t in range(len(u))]))
    d = x @ jnp.array([0.5, -1.0, 0.25, 0.1])
    tx = optax.chain(
        scale_by_input_covariance(0.0, eps=0.1, **PLAIN),
        optax.scale_by_learning_rate(0.5),
    )
    wanted = nlms_filter(u, d, num_taps=4, step_size=0.5, eps=0.1).weights
    np.testing.assert_allclose(trained(tx, x, d), wanted, rtol=1e-10, atol=1e-12)


def test_several_samples_without_memory_are_affine_projection(stream):
    _, x, d = stream
    order, eps = 3, 0.05
    tx = optax.chain(
        scale_by_input_covariance(0.0, eps=eps, **PLAIN),
        optax.scale_by_learning_rate(0.7),
    )
    weights = np.zeros(4)
    x, d = np.asarray(x), np.asarray(d)
    for t, got in enumerate(trained(tx, jnp.asarray(x), jnp.asarray(d), order)):
        rows, targets = x[t : t + order], d[t : t + order]
        gram = rows @ rows.T + order * eps * np.eye(order)
        error = targets - rows @ weights
        weights = weights + 0.7 * rows.T @ np.linalg.solve(gram, error)
        np.testing.assert_allclose(got, weights, rtol=1e-10, atol=1e-12)


def test_long_memory_from_a_known_start_is_rls(stream):
    _, x, d = stream
    forgetting, delta = 0.97, 0.5
    tx = optax.chain(
        scale_by_input_covariance(
            forgetting,
            eps=0.0,
            initial_covariance=(1 - forgetting) * delta,
            **PLAIN,
        ),
        optax.scale_by_learning_rate(1 - forgetting),
    )
    weights, p = np.zeros(4), np.eye(4) / delta
    x, d = np.asarray(x), np.asarray(d)
    for t, got in enumerate(trained(tx, jnp.asarray(x), jnp.asarray(d))):
        gain = p @ x[t] / (forgetting + x[t] @ p @ x[t])
        weights = weights + gain * (d[t] - weights @ x[t])
        p = (p - np.outer(gain, x[t] @ p)) / forgetting
        np.testing.assert_allclose(got, weights, rtol=1e-10, atol=1e-12)


def test_heavy_damping_gives_the_steps_of_sgd(x64):
    rng = np.random.default_rng(0)
    g = {"kernel": jnp.asarray(rng.normal(size=(5, 3)))}
    tx = scale_by_input_covariance(damping=1e12)
    sown = sown_of(rng.normal(size=(7, 5)))
    updates, _ = jax.jit(tx.update)(g, tx.init(g), input_covariances=sown)
    np.testing.assert_allclose(updates["kernel"], g["kernel"], rtol=1e-10)


def test_white_input_gives_the_power_normalizer(x64):
    # a I has the power a d, and the rule divides by a + eps / d.
    d, a, eps = 4, 3.0, 0.2
    g = {"kernel": jnp.arange(8.0).reshape(d, 2)}
    rows = np.sqrt(a * d) * np.eye(d)
    tx = scale_by_input_covariance(0.0, eps=eps / d, **PLAIN)
    updates, _ = jax.jit(tx.update)(g, tx.init(g), input_covariances=sown_of(rows))
    power = scale_by_input_power(0.0, normalizer="power", eps=eps)
    norms = {"input_norm": jnp.asarray(np.mean(np.sum(rows**2, axis=1)))}
    wanted, _ = power.update(g, power.init(g), input_norms=norms)
    np.testing.assert_allclose(updates["kernel"], d * wanted["kernel"], rtol=1e-12)


ORACLES = {
    "default": {},
    "no memory": {"decay": 0.0},
    "light damping": {"damping": 0.01, "decay": 0.5},
    "heavy damping": {"damping": 10.0, "eps": 0.1},
    "newton's lengths": {"preserve_norm": False, "damping": 0.3},
    "blocks": {"block": 3, "damping": 0.1},
    "uneven blocks": {"block": 4, "damping": 0.1, "preserve_norm": False},
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("options", ORACLES.values(), ids=ORACLES)
def test_updates_match_the_reference(x64, options, dtype):
    rng = np.random.default_rng(0)
    d, m = 6, 3
    rule = {"decay": 0.9, "damping": 1.0, "eps": 1e-8, "preserve_norm": True} | options
    block = rule.pop("block", None)
    tx = scale_by_input_covariance(**rule, max_dim=block or d)
    # The library makes blocks of equal size.
    block = block and -(-d // -(-d // block))
    reference = Reference(d, block=block, **rule)
    g = {"kernel": jnp.zeros((d, m), dtype)}
    state = tx.init(g)
    update = jax.jit(lambda g, state, sown: tx.update(g, state, input_covariances=sown))
    mixing = rng.normal(size=(d, d))
    for step in range(6):
        grad = rng.normal(size=(d, m))
        rows = rng.normal(size=(4 + step, d)) @ mixing
        sown = sown_of(rows, dtype=dtype)
        if step % 3 == 2:  # a step that does not capture
            sown = jax.tree.map(jnp.zeros_like, sown)
        wanted = reference.update(grad, None if step % 3 == 2 else rows)
        updates, state = update({"kernel": jnp.asarray(grad, dtype)}, state, sown)
        tolerance = 1e-10 if dtype == np.float64 else 1e-4
        np.testing.assert_allclose(
            updates["kernel"], wanted, rtol=tolerance, atol=tolerance
        )
    assert state.failures == 0


@pytest.mark.parametrize("captured", ["kronecker", "patch", "max_dim"])
def test_the_kronecker_form_matches_the_reference(x64, captured):
    rng = np.random.default_rng(0)
    model = nn.Conv(2, (2, 2), padding="VALID", param_dtype=jnp.float64)
    x = jnp.asarray(rng.normal(size=(5, 4, 3, 3)))
    params = jax.jit(model.init)(jax.random.key(0), x)["params"]
    patches = np.stack(
        [
            np.asarray(x[n, i : i + 2, j : j + 2]).reshape(-1)
            for n in range(5)
            for i in range(3)
            for j in range(2)
        ]
    )
    reference = Reference(
        12, decay=0.9, damping=0.2, eps=1e-3, preserve_norm=True, kron=(4, 3)
    )
    small = {"kronecker": {}, "patch": {"max_dim": 12}, "max_dim": {"max_dim": 11}}
    options = small[captured]
    if captured == "kronecker":
        options = {"conv_covariance": "kronecker"}
    with capture_input_covariances(max_rows=None, **options):
        like = input_covariance_shapes(model, jax.random.key(0), x)
        _, sown = jit_apply(model)({"params": params}, x, mutable=("intermediates",))
    # The optimizer brings a whole matrix into its own form.
    shape = (
        {"input_covariances_like": like} if captured == "kronecker" else {"max_dim": 11}
    )
    tx = scale_by_input_covariance(0.9, damping=0.2, eps=1e-3, **shape)
    g = rng.normal(size=(2, 2, 3, 2))
    grads = {"kernel": jnp.asarray(g), "bias": jnp.ones(2)}
    updates, state = jax.jit(tx.update)(grads, tx.init(params), input_covariances=sown)
    wanted = reference.update(g.reshape(12, 2), patches).reshape(g.shape)
    np.testing.assert_allclose(updates["kernel"], wanted, rtol=1e-10)
    np.testing.assert_array_equal(updates["bias"], 1)
    assert state.failures == 0


def test_kronecker_form_of_one_tap_is_one_matrix():
    model = nn.Conv(2, (1, 1), use_bias=False)
    x = jnp.ones((2, 3, 3, 4))
    with capture_input_covariances(conv_covariance="kronecker"):
        shapes = input_covariance_shapes(model, jax.random.key(0), x)
    (factor,) = shapes["input_covariance"][0].factors
    assert factor.shape == (1, 1, 4, 1, 1, 1, 4, 1)


def test_kronecker_form_treats_a_negative_eigenvalue_as_rounding():
    taps = jnp.diag(jnp.array([1.0, -1e-6])).reshape(2, 1, 1, 2, 1, 1)
    channels = (jnp.eye(3) / 3).reshape(1, 3, 1, 1, 3, 1)
    sown = {
        "input_covariance": (InputCovariance((taps, channels), jnp.ones(())),),
    }
    tx = scale_by_input_covariance(0.0, eps=1e-8, **PLAIN, input_covariances_like=sown)
    g = {"kernel": jnp.ones((2, 3, 1))}
    updates, state = jax.jit(tx.update)(g, tx.init(g), input_covariances=sown)
    assert state.failures == 0
    # The eigenvalues 1 and 0 times 1/3, and eps.
    wanted = np.repeat([3, 1e8], 3)
    np.testing.assert_allclose(updates["kernel"].ravel(), wanted, rtol=1e-5)


def test_sown_covariances_are_cut_off_from_differentiation():
    model = nn.Dense(2, use_bias=False)
    params = {"kernel": jnp.ones((3, 2))}

    @jax.jit
    @jax.grad
    def gradient(x):
        with capture_input_covariances():
            _, sown = model.apply({"params": params}, x, mutable=["intermediates"])
        return sown["intermediates"]["input_covariance"][0].factors[0].sum()

    np.testing.assert_array_equal(gradient(jnp.ones((4, 3))), 0)


def test_bfloat16_inputs_are_summed_in_float32():
    x = jax.random.normal(jax.random.key(0), (300, 3), jnp.bfloat16)
    model = nn.Dense(2, use_bias=False, dtype=jnp.bfloat16)
    params = {"kernel": jnp.ones((3, 2))}
    with capture_input_covariances(max_rows=None):
        _, sown = jit_apply(model)({"params": params}, x, mutable=("intermediates",))
    (factor,) = sown["intermediates"]["input_covariance"][0].factors
    rows = np.asarray(x, np.float64)
    np.testing.assert_allclose(factor.reshape(3, 3), rows.T @ rows, rtol=1e-5)


def matrix_products(jaxpr):
    """All matrix products of a traced function, including those in loops."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for part in jax.tree.leaves(tuple(equation.params.values())):
            inner = getattr(part, "jaxpr", part)
            if hasattr(inner, "eqns"):
                yield from matrix_products(inner)


@pytest.mark.parametrize("form", ["patch", "kronecker"])
def test_matrix_products_have_the_highest_precision(form):
    """At lower precisions, GPUs and TPUs round the factors; CPUs do not."""
    model = nn.Conv(2, (3, 3), use_bias=False)  # Not a matrix product.
    x = jnp.ones((2, 4, 4, 65))
    params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    with capture_input_covariances(conv_covariance=form):
        like = input_covariance_shapes(model, jax.random.key(0), x)
    tx = scale_by_input_covariance(input_covariances_like=like)

    def step(params, state):
        with capture_input_covariances(conv_covariance=form):
            _, sown = model.apply({"params": params}, x, mutable=["intermediates"])
        return tx.update(params, state, input_covariances=sown)

    state = jax.eval_shape(tx.init, params)
    found = list(matrix_products(jax.make_jaxpr(step)(params, state).jaxpr))
    assert len(found) >= 6
    highest = jax.lax.Precision.HIGHEST
    assert {each.params["precision"] for each in found} == {(highest, highest)}


def gradient_and_updates(rows_by_step, **options):
    """A gradient, and its updates over steps that have input vectors or None."""
    d = 3
    tx = scale_by_input_covariance(**options)
    g = {"kernel": jnp.arange(1.0, 7.0).reshape(d, 2)}
    state, seen = tx.init(g), []
    update = jax.jit(lambda g, state, sown: tx.update(g, state, input_covariances=sown))
    for rows in rows_by_step:
        sown = sown_of(np.zeros((1, d)) if rows is None else rows, dtype=jnp.float32)
        if rows is None:
            sown = jax.tree.map(jnp.zeros_like, sown)
        updates, state = update(g, state, sown)
        seen.append((np.asarray(updates["kernel"]), state))
    return g["kernel"], seen


def test_a_pass_without_capture_changes_no_bit():
    rows = np.random.default_rng(0).normal(size=(9, 3))
    _, ((first, before), (second, after)) = gradient_and_updates([rows, None])
    np.testing.assert_array_equal(first, second)
    jax.tree.map(np.testing.assert_array_equal, before.layers, after.layers)
    assert (int(before.count), int(after.count)) == (1, 2)


def test_steps_before_the_first_capture_are_those_of_sgd():
    g, ((update, _),) = gradient_and_updates([None])
    np.testing.assert_allclose(update, g, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.inf, np.nan, 1e30])
def test_inputs_that_are_not_finite_are_not_counted(bad):
    rows = np.random.default_rng(0).normal(size=(9, 3))
    worse = rows.copy()
    worse[4, 1] = bad
    _, ((first, before), (second, after)) = gradient_and_updates([rows, worse])
    np.testing.assert_array_equal(first, second)
    jax.tree.map(np.testing.assert_array_equal, before.layers, after.layers)


def test_reading_two_covariances_of_one_weight_is_an_error():
    tx = optax.chain(whiten_inputs(optax.identity()), scale_by_input_covariance())
    state = jax.eval_shape(tx.init, {"a": {"kernel": jnp.ones((2, 2))}})
    for read in (covariance_condition_numbers, covariance_cosines):
        with pytest.raises(ValueError, match="a/kernel is scaled by two"):
            read(state)


def test_dead_input_gives_the_steps_of_sgd():
    g, ((update, state),) = gradient_and_updates([np.zeros((4, 3))])
    np.testing.assert_allclose(update, g, rtol=1e-6)
    assert state.failures == 0


def test_dead_input_without_preserve_norm_divides_by_eps():
    options = {"preserve_norm": False, "eps": 1e-3, "damping": 0.5}
    g, ((update, _),) = gradient_and_updates([np.zeros((4, 3))], **options)
    np.testing.assert_allclose(update, g / 1e-3, rtol=1e-5)


def test_singular_covariance_keeps_the_last_inverse_and_is_counted():
    rows = np.random.default_rng(0).normal(size=(9, 3))
    options = {"decay": 0.0, "damping": 0.0, "eps": 0.0}
    _, ((first, _), (second, state)) = gradient_and_updates(
        [rows, rows * [1, 1, 0]], **options
    )
    np.testing.assert_array_equal(first, second)
    assert state.failures == 1
    g, ((update, state),) = gradient_and_updates([rows * [1, 0, 0]], **options)
    np.testing.assert_allclose(
        update, g, rtol=1e-6
    )  # no valid inverse yet: the identity
    assert state.failures == 1


def test_only_the_stacked_layer_with_nan_is_not_counted():
    stack = InputCovariance(
        (jnp.ones((3, 2, 1, 2, 1)).at[1, 0].set(jnp.nan),), jnp.ones(3)
    )
    factors, count = checked(stack)
    np.testing.assert_array_equal(count, [1, 0, 1])
    np.testing.assert_array_equal(factors[0].sum(axis=(1, 2, 3, 4)), [4, 0, 4])


def test_a_failure_is_counted_once_whatever_other_layers_sow():
    rows = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    tx = scale_by_input_covariance(decay=0.0, damping=0.0, eps=0.0)
    grads = {name: {"kernel": jnp.ones((3, 2))} for name in "ab"}
    update, state = jax.jit(tx.update), tx.init(grads)
    nan, singular = rows * np.float32(np.nan), rows * np.float32([1, 1, 0])
    # A layer whose covariance is not known, or not finite, is not inverted.
    for a, failures in ((nan, 0), (singular, 1), (nan, 1)):
        sown = {"a": sown_of(a), "b": sown_of(rows)}
        _, state = update(grads, state, input_covariances=sown)
        assert state.failures == failures


@pytest.mark.parametrize("scale", [1e-18, 1.0, 1e15])
@pytest.mark.parametrize("damping", [0.0, 1e-6, 1.0])
def test_ill_conditioned_covariances_give_finite_steps(scale, damping):
    rows = np.random.default_rng(0).normal(size=(9, 3)) * [1, 1e-6, 1e-3] * scale
    g, seen = gradient_and_updates([rows, None, rows], damping=damping)
    for update, _ in seen:
        assert np.isfinite(update).all()
        np.testing.assert_allclose(np.linalg.norm(update), np.linalg.norm(g), rtol=1e-5)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_tiny_and_huge_gradients_keep_their_norm(size):
    tx = scale_by_input_covariance()
    g = {"kernel": size * jnp.arange(1.0, 7.0).reshape(3, 2)}
    sown = sown_of(np.random.default_rng(0).normal(size=(9, 3)), dtype=jnp.float32)
    update = jax.jit(tx.update)
    updates, _ = update(g, tx.init(g), input_covariances=sown)
    norm = np.linalg.norm(np.asarray(updates["kernel"], np.float64))
    np.testing.assert_allclose(norm, size * np.sqrt(91), rtol=1e-5)
    zero = jax.tree.map(jnp.zeros_like, g)
    updates, _ = update(zero, tx.init(g), input_covariances=sown)
    np.testing.assert_array_equal(updates["kernel"], 0)


class Shared(nn.Module):
    """A layer used twice."""

    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(3, use_bias=False)
        return layer(jnp.tanh(layer(x)))


def test_uses_of_a_layer_and_micro_batches_add_up():
    x = jax.random.normal(jax.random.key(0), (6, 3))
    params = jax.jit(Shared().init)(jax.random.key(1), x)["params"]

    def sown(x):
        with capture_input_covariances():
            return jit_apply(Shared())(
                {"params": params}, x, mutable=("intermediates",)
            )[1]

    kernel = params["Dense_0"]["kernel"]
    rows = np.concatenate([x, jnp.tanh(x @ kernel)])
    # Without preserve_norm, because a wrong number of rows only rescales a step.
    tx = scale_by_input_covariance(preserve_norm=False)
    halves = jax.tree.map(lambda a, b: (a + b) / 2, sown(x[:3]), sown(x[3:]))
    plain = {"Dense_0": sown_of(rows, dtype=jnp.float32)}
    results = [
        jax.jit(tx.update)(params, tx.init(params), input_covariances=each)[0]
        for each in (sown(x), halves, plain)
    ]
    for other in results[1:]:
        np.testing.assert_allclose(
            results[0]["Dense_0"]["kernel"], other["Dense_0"]["kernel"], rtol=2e-5
        )


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(nn.Dense(4)(x)), None


class Stack(nn.Module):
    """Scanned layers, or the same ones written out."""

    scanned: bool

    @nn.compact
    def __call__(self, x):
        if self.scanned:
            scanned = nn.scan(
                Layer,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=3,
            )
            return scanned(name="layers")(x, None)[0]
        for i in range(3):
            x, _ = Layer(name=f"layer_{i}")(x, None)
        return x


def test_stacked_layers_each_keep_a_covariance():
    x = jax.random.normal(jax.random.key(0), (8, 4))
    scanned, written = Stack(True), Stack(False)
    params = jax.jit(scanned.init)(jax.random.key(1), x)["params"]
    apart = {
        f"layer_{i}": jax.tree.map(lambda w, i=i: w[i], params["layers"])
        for i in range(3)
    }

    def step(model, params):
        def loss_fn(params):
            with capture_input_covariances():
                y, sown = model.apply({"params": params}, x, mutable=("intermediates",))
            return jnp.mean(jnp.sin(y)), sown

        with capture_input_covariances():
            like = input_covariance_shapes(model, jax.random.key(0), x)
        tx = lms_newton(0.1, input_covariances_like=like)

        @jax.jit
        def update(params):
            grads, sown = jax.grad(loss_fn, has_aux=True)(params)
            return tx.update(grads, tx.init(params), input_covariances=sown)[0]

        return update(params)

    stacked, separate = step(scanned, params), step(written, apart)
    for i in range(3):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-7),
            jax.tree.map(lambda w, i=i: w[i], stacked["layers"]),
            separate[f"layer_{i}"],
        )


@pytest.mark.parametrize("passes", [1, 2])
def test_covariances_of_stacked_layers_add_up_over_scanned_micro_batches(passes):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(passes, 3, 7, 4)) * np.array([1, 1, 1, 9])
    products = jnp.asarray(np.einsum("plni,plnj->plij", rows, rows), jnp.float32)
    counts = jnp.full((passes, 3), 7.0)

    def sown(products, counts):
        factor = products.reshape(*products.shape[:-2], 4, 1, 4, 1)
        return {"d": {"input_covariance": (InputCovariance((factor,), counts),)}}

    params = {"d": {"kernel": jnp.asarray(rng.normal(size=(3, 4, 2)), jnp.float32)}}
    whole = sown(products.sum(axis=0), counts.sum(axis=0))
    tx = scale_by_input_covariance(input_covariances_like=whole)
    update = jax.jit(
        lambda sown: tx.update(params, tx.init(params), input_covariances=sown)
    )
    results = update(sown(products, counts)), update(whole)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4), *results)


@pytest.mark.parametrize("cell", [nn.SimpleCell, nn.GRUCell, nn.OptimizedLSTMCell])
def test_covariances_of_recurrent_cells_add_up_over_time(cell):
    x = jax.random.normal(jax.random.key(0), (2, 5, 3))
    model = nn.RNN(cell(4))
    params = jax.jit(model.init)(jax.random.key(1), x)["params"]
    with capture_input_covariances():
        _, sown = jit_apply(model)({"params": params}, x, mutable=("intermediates",))
    tx = scale_by_input_covariance(0.0)
    _, state = jax.jit(tx.update)(params, tx.init(params), input_covariances=sown)
    rows = np.asarray(x).reshape(-1, 3)
    layers = state.layers["cell"]
    of_input = [layer["kernel"].factors[0] for layer in layers.values()]
    of_input = [a.reshape(3, 3) for a in of_input if a.shape[0] == 3]
    assert of_input
    for a in of_input:
        np.testing.assert_allclose(a, rows.T @ rows / 10, rtol=1e-5)


def test_attention_learns_its_form_from_the_shapes():
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    model = nn.MultiHeadDotProductAttention(num_heads=2, use_bias=False)

    def state_after(model, tx):
        """The shapes of the state after one update."""

        def step():
            params = model.init(jax.random.key(1), x, x)["params"]
            with capture_input_covariances():
                _, sown = model.apply(
                    {"params": params}, x, x, mutable=["intermediates"]
                )
            return tx.update(params, tx.init(params), input_covariances=sown)[1]

        return jax.eval_shape(step)

    with capture_input_covariances():
        like = input_covariance_shapes(model, jax.random.key(0), x, x)
    guessed = scale_by_input_covariance()
    with pytest.raises(ValueError, match="key/kernel does not fit.*covariances_like"):
        state_after(model, guessed)
    informed = scale_by_input_covariance(input_covariances_like=like)
    state = state_after(model, informed)
    assert state.layers["query"]["kernel"].factors[0].shape == (8, 1, 1, 8, 1, 1)
    assert state.layers["out"]["kernel"].factors[0].shape == (2, 4, 1, 2, 4, 1)
    # The shapes of the biases determine the form, too.
    state_after(nn.MultiHeadDotProductAttention(num_heads=2), guessed)


class Own(nn.Module):
    @nn.compact
    def __call__(self, x):
        sow_input_covariance(self, x)
        return x @ self.param("kernel", nn.initializers.ones, (3, 2))


def test_own_layers_sow_a_covariance_only_within_a_capture():
    x = jax.random.normal(jax.random.key(0), (6, 3))
    params = Own().init(jax.random.key(1), x)["params"]
    apply = functools.partial(Own().apply, {"params": params}, x)
    _, outside = apply(mutable=("intermediates",))
    assert not outside  # no capture, no cost
    with capture_input_covariances():
        _, sown = apply(mutable=("intermediates",))
    np.testing.assert_allclose(
        sown["intermediates"]["input_covariance"][0].factors[0].reshape(3, 3),
        x.T @ x,
        rtol=1e-5,
    )


def test_rows_are_capped_and_spread():
    model = nn.Conv(2, (3, 3))
    x = jax.random.normal(jax.random.key(0), (16, 20, 20, 2))
    params = jax.jit(model.init)(jax.random.key(1), x)
    counts = {}
    for most in (None, 1000, 100, 10, 1):
        with capture_input_covariances(max_rows=most):
            _, sown = jit_apply(model)(params, x, mutable=("intermediates",))
        counts[most] = int(sown["intermediates"]["input_covariance"][0].count)
    assert counts[None] == 16 * 400
    for most in (1000, 100, 10, 1):
        assert 0.4 * most < counts[most] <= most
    # For stationary inputs, a few rows have nearly the covariance of all.
    with capture_input_covariances(max_rows=1000):
        _, few = jit_apply(model)(params, x, mutable=("intermediates",))
    with capture_input_covariances(max_rows=None):
        _, all_ = jit_apply(model)(params, x, mutable=("intermediates",))

    def mean(sown):
        covariance = sown["intermediates"]["input_covariance"][0]
        return covariance.factors[0].reshape(18, 18) / covariance.count

    assert np.linalg.norm(mean(few) - mean(all_)) < 0.3 * np.linalg.norm(mean(all_))


class Small(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        x = nn.relu(nn.Conv(4, (3, 3), strides=2)(x))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


def test_capture_changes_neither_loss_nor_gradients():
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    params = jax.jit(Small().init)(jax.random.key(1), x)["params"]

    def loss_fn(params, x, when):
        capture = (
            capture_input_covariances(when=when)
            if when is not None
            else contextlib.nullcontext()
        )
        with capture:
            y, sown = Small().apply({"params": params}, x, mutable=("intermediates",))
        return jnp.mean(jnp.sin(y)), sown

    grad = jax.value_and_grad(loss_fn, has_aux=True)
    (plain, _), plain_grads = jax.jit(lambda p, x: grad(p, x, None))(params, x)
    traced = jax.jit(grad)
    for when in (True, False):
        (loss, sown), grads = traced(params, x, when)
        assert loss == plain
        jax.tree.map(np.testing.assert_array_equal, grads, plain_grads)
        counts = [
            leaf.count
            for leaf in jax.tree.leaves(
                sown, is_leaf=lambda n: hasattr(n, "count") and hasattr(n, "factors")
            )
        ]
        assert all((count > 0) == when for count in counts)
    assert traced._cache_size() == 1


def test_a_step_compiled_without_a_capture_has_no_branch_or_loop():
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    params = jax.jit(Small().init)(jax.random.key(1), x)["params"]
    tx = lms_newton(0.1)

    def train_step(params, opt_state, when):
        def loss_fn(params):
            with capture_input_covariances(when=when):
                y, sown = Small().apply(
                    {"params": params}, x, mutable=["intermediates"]
                )
            return jnp.mean(jnp.sin(y)), sown

        grads, sown = jax.grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params, input_covariances=sown)
        return optax.apply_updates(params, updates), opt_state

    opt_state = tx.init(params)
    two = jax.jit(train_step, static_argnames="when")
    plain = two.lower(params, opt_state, when=False).compile()
    assert not re.search(r"\b(conditional|while)\(", plain.as_text())
    one = jax.jit(train_step)
    both = one.lower(params, opt_state, True).compile().as_text()
    assert re.search(r"\bconditional\(", both)
    assert re.search(r"\bwhile\(", both)

    ours, theirs = (params, opt_state), (params, opt_state)
    for step in range(4):
        ours = two(*ours, when=step % 2 == 0)
        theirs = one(*theirs, step % 2 == 0)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        largest = max(1, np.abs(b).max())  # About 10 in the inverses.
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * largest)


def test_covariances_leave_the_conditional_without_axes_of_length_1():
    """XLA on CPUs copies an array for a layout that differs only in such axes."""
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    model = nn.Sequential([nn.Conv(4, (3, 3)), nn.relu, nn.Dense(2)])
    variables = jax.jit(model.init)(jax.random.key(1), x)

    @jax.jit
    def sown(x, when):
        with capture_input_covariances(when=when):
            return model.apply(variables, x, mutable=["intermediates"])[1]

    program = sown.lower(x, True).as_text()
    results = re.findall(r"\}\) : \(tensor<i32>\) -> \(tensor<(\S+)xf32>", program)
    assert results == ["3x3x3x3x3x3", "4x4"]
    shapes = [y.shape for y in jax.tree.leaves(sown(x, True))]
    assert shapes == [(3, 3, 3, 1, 3, 3, 3, 1), (), (4, 1, 4, 1), ()]


def test_no_activation_is_kept_for_the_backward_pass():
    x = jax.random.normal(jax.random.key(0), (64, 16, 16, 8))
    model = nn.Sequential(
        [nn.Conv(8, (3, 3)) if i % 2 else nn.relu for i in range(1, 9)]
    )
    params = jax.jit(model.init)(jax.random.key(1), x)["params"]

    def temporary(captured):
        def loss_fn(params, when):
            if not captured:
                return jnp.mean(model.apply({"params": params}, x)), {}
            with capture_input_covariances(when=when, max_rows=512):
                y, sown = model.apply({"params": params}, x, mutable=("intermediates",))
            return jnp.mean(y), sown

        step = jax.jit(jax.grad(loss_fn, has_aux=True))
        compiled = step.lower(params, True).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(True) < 1.25 * temporary(False)


def test_errors_name_the_place_and_the_remedy():
    params = {"Dense_0": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}}
    tx = scale_by_input_covariance()
    state = tx.init(params)
    with pytest.raises(ValueError, match="input_covariances is missing"):
        tx.update(params, state)
    with pytest.raises(ValueError, match="(?s)Dense_0/kernel.*outside"):
        tx.update(params, state, input_covariances={})
    wrong = {"Dense_0": sown_of(np.ones((5, 4)), dtype=jnp.float32)}
    with pytest.raises(
        ValueError, match="Dense_0/kernel does not fit.*4 by 4, not 3 by 3"
    ):
        tx.update(params, state, input_covariances=wrong)
    with pytest.raises(ValueError, match="no parameter is in scope"):
        tx.init({"Dense_0": {"bias": jnp.ones(2)}})
    with pytest.raises(ValueError, match="complex64"):
        tx.init({"kernel": jnp.ones((3, 2), jnp.complex64)})
    like = {"Dense_1": sown_of(np.ones((5, 3)), dtype=jnp.float32)}
    with pytest.raises(ValueError, match="no input covariance for.*\n  Dense_0/kern"):
        scale_by_input_covariance(input_covariances_like=like).init(params)
    x = jnp.ones((1, 3), jnp.complex64)
    with capture_input_covariances(), pytest.raises(ValueError, match="must be real"):
        nn.Dense(2).apply({"params": params["Dense_0"]}, x, mutable=["intermediates"])
    with pytest.raises(ValueError, match="no ScaleByInputCovarianceState"):
        covariance_cosines(optax.sgd(0.1).init(params))
    kept, _ = scale_by_input_covariance(missing="keep").update(
        params, state, input_covariances={}
    )
    np.testing.assert_allclose(kept["Dense_0"]["kernel"], 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 1.0}, "decay=1.0"),
        ({"damping": -1.0}, "damping=-1.0"),
        ({"damping": np.inf}, "damping=inf"),
        ({"eps": -1e-3}, "eps=-0.001"),
        ({"max_dim": 0}, "max_dim=0"),
        ({"max_dim": 2.5}, "max_dim=2.5"),
        ({"missing": "skip"}, "missing='skip'"),
        ({"scope": "layer"}, "layer"),
        ({"scope": "kernels"}, "scope='kernels'"),
        ({"initial_covariance": 0.0}, "initial_covariance"),
        ({"initial_covariance": "1"}, "initial_covariance='1'"),
        ({"decay": [0.9]}, "decay has shape"),
        ({"decay": None}, "decay=None"),
        ({"damping": jnp.ones(3)}, "damping has shape"),
        ({"damping": optax.constant_schedule(1.0)}, "damping.*inject_hyperparams"),
        ({"eps": "0"}, "eps='0'"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        scale_by_input_covariance(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_rows": 0}, "max_rows=0"),
        ({"max_dim": True}, "max_dim=True"),
        ({"conv_covariance": "taps"}, "conv_covariance='taps'"),
        ({"when": jnp.array([True])}, "when"),
        ({"when": None}, "when is of type NoneType"),
        ({"when": 3}, "when is of type int.*step % 10 == 0"),
        ({"when": jnp.int32(3)}, "when is of type int32.*step % 10 == 0"),
    ],
)
def test_capture_options_out_of_range_are_refused(options, message):
    errors = (TypeError, ValueError)
    with pytest.raises(errors, match=message), capture_input_covariances(**options):
        pass


def test_after_adam_the_steps_keep_their_lengths():
    x = jax.random.normal(jax.random.key(0), (16, 3)) * jnp.array([[3.0, 1.0, 0.1]])
    params = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}
    grads = {"kernel": x.T @ jnp.ones((16, 2)), "bias": jnp.ones(2)}
    adam = optax.scale_by_adam()
    linked = optax.chain(optax.scale_by_adam(), scale_by_input_covariance())
    sown = sown_of(x, dtype=jnp.float32)
    plain, _ = adam.update(grads, adam.init(params))
    turned, _ = linked.update(grads, linked.init(params), input_covariances=sown)
    np.testing.assert_array_equal(plain["bias"], turned["bias"])
    np.testing.assert_allclose(
        jnp.linalg.norm(plain["kernel"]), jnp.linalg.norm(turned["kernel"]), rtol=1e-5
    )
    assert np.abs(plain["kernel"] - turned["kernel"]).max() > 0.1


@pytest.mark.parametrize("form", ["one matrix", "blocks", "kronecker"])
def test_condition_numbers_and_cosines_match_numpy(x64, form):
    rng = np.random.default_rng(0)
    damping = 0.1
    if form == "kronecker":
        model = nn.Conv(2, (3, 3), padding="VALID", param_dtype=jnp.float64)
        x = jnp.asarray(rng.normal(size=(9, 6, 6, 4))) + 1.0
        options = {"conv_covariance": "kronecker"}
    else:
        model = nn.Dense(2, param_dtype=jnp.float64)
        x = jnp.asarray(rng.normal(size=(20, 6)) @ rng.normal(size=(6, 6)))
        options = {"max_dim": 3} if form == "blocks" else {}
    params = jax.jit(model.init)(jax.random.key(0), x)["params"]
    with capture_input_covariances(max_rows=None, **options):
        like = input_covariance_shapes(model, jax.random.key(0), x)
        _, sown = jit_apply(model)({"params": params}, x, mutable=("intermediates",))
    tx = scale_by_input_covariance(
        0.0, damping=damping, preserve_norm=False, input_covariances_like=like
    )
    # D itself, one column at a time.
    kernel = params["kernel"]
    size = kernel.size // kernel.shape[-1]
    columns = []
    update = jax.jit(
        lambda g, sown: tx.update(g, tx.init(params), input_covariances=sown)
    )
    for i in range(size):
        g = np.zeros((size, kernel.shape[-1]))
        g[i, 0] = 1.0
        grads = {"kernel": jnp.asarray(g.reshape(kernel.shape)), "bias": jnp.zeros(2)}
        updates, state = update(grads, sown)
        columns.append(np.asarray(updates["kernel"]).reshape(size, -1)[:, 0])
    inverse = np.stack(columns, axis=1)
    condition = covariance_condition_numbers(state)["kernel"]
    np.testing.assert_allclose(condition, np.linalg.cond(inverse), rtol=0.05)
    wanted = inverse[-1, -1] / np.linalg.norm(inverse[:, -1])
    np.testing.assert_allclose(covariance_cosines(state)["kernel"], wanted, rtol=1e-9)
