"""Optax's own tables of properties, for the optimizers of this library.

The cases are those of optax/_src/alias_test.py and optax/contrib/_common_test.py. Their
targets are single arrays; here each is the kernel of a layer, whose input statistic
stays the same.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from insgd_optax import MultiSteps, clip_by_polyak, insgd, lms_newton
from insgd_optax._covariance import InputCovariance

# exp(4): the multiplier is 1 / 4.
POWER = 54.598


def norms(params):
    return {
        "input_norms": {
            name: {"input_norm": jnp.full((1,) * layer["kernel"].ndim, POWER)}
            for name, layer in params.items()
            if "kernel" in layer
        }
    }


def covariances(params):
    """Covariances of 4 rows, with a different variance along each input."""

    def of(kernel):
        inputs, *outputs = kernel.shape
        axes = (inputs, *[1] * len(outputs))
        matrix = jnp.diag(1 + jnp.arange(inputs, dtype=jnp.float32))
        return InputCovariance((matrix.reshape(axes + axes),), jnp.array(4.0))

    return {
        "input_covariances": {
            name: {"input_covariance": (of(layer["kernel"]),)}
            for name, layer in params.items()
            if "kernel" in layer
        }
    }


def nothing(params):
    del params
    return {}


class Case(NamedTuple):
    factory: Callable[..., optax.GradientTransformationExtraArgs]
    options: dict[str, Any]
    statistics: Callable[[Any], dict[str, Any]] = nothing
    takes_complex: bool = True
    takes_loss: bool = False

    def make(self, **options):
        return self.factory(**self.options | options)

    def update_kwargs(self, params, value):
        return self.statistics(params) | ({"value": value} if self.takes_loss else {})


CASES = {
    "insgd": Case(insgd, {"learning_rate": 4e-3}, norms),
    "insgd, polyak": Case(
        insgd,
        {"learning_rate": 1.0, "polyak_factor": 1.0, "momentum": 0.5},
        norms,
        takes_loss=True,
    ),
    "clip_by_polyak": Case(
        clip_by_polyak,
        {"learning_rate": 1.0, "factor": 1.0, "momentum": 0.5},
        takes_loss=True,
    ),
    # The covariance of complex inputs is not implemented.
    "lms_newton": Case(
        lms_newton, {"learning_rate": 1e-3}, covariances, takes_complex=False
    ),
}
# Injected numbers take the dtype of the weights; optax's tables only inject real ones.
INJECTED = CASES["insgd"]._replace(
    factory=optax.inject_hyperparams(insgd), takes_complex=False
)
ALL = CASES | {"inject_hyperparams(insgd)": INJECTED}

plain_cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
all_cases = pytest.mark.parametrize("case", ALL.values(), ids=ALL.keys())


def column(*values, dtype):
    return {"layer": {"kernel": jnp.array(values, dtype)[:, None]}}


def parabola(dtype):
    factor = 1 + 1j if jnp.issubdtype(dtype, jnp.complexfloating) else 1.0
    goal = column(*(factor * x for x in (1.0, -1.0, 1.0)), dtype=dtype)
    return column(-1.0, 10.0, 1.0, dtype=dtype), goal, distance(goal)


def rosenbrock(dtype):
    a = 1 + 1j if jnp.issubdtype(dtype, jnp.complexfloating) else 1.0

    def objective(params):
        x, y = params["layer"]["kernel"][:, 0]
        return abs_sq(a - x) + 100.0 * abs_sq(y - x**2)

    return column(0.0, 0.0, dtype=dtype), column(a, a**2, dtype=dtype), objective


def matrix_parabola(dtype):
    goal = {"layer": {"kernel": jnp.array([[3.0, -2.0], [1.0, 4.0]], dtype)}}
    return jax.tree.map(jnp.zeros_like, goal), goal, distance(goal)


def mixed_ranks(dtype):
    goal = {
        "a": {"kernel": jnp.array([[1.0, 0.0], [-1.0, 1.0]], dtype)},
        "b": {"bias": jnp.array([1.0, -1.0, 2.0], dtype)},
    }
    return jax.tree.map(jnp.zeros_like, goal), goal, distance(goal)


def distance(goal):
    return lambda params: sum(
        jax.tree.leaves(jax.tree.map(lambda w, g: jnp.sum(abs_sq(w - g)), params, goal))
    )


def abs_sq(x):
    return jnp.real(x * jnp.conj(x))


def step_of(case, tx, objective, **others):
    def step(params, state):
        value, grads = jax.value_and_grad(objective)(params)
        # JAX's gradient of a complex weight is the conjugate of the ascent direction.
        grads = jax.tree.map(jnp.conj, grads)
        kwargs = case.update_kwargs(params, value) | others
        updates, state = tx.update(grads, state, params, **kwargs)
        return optax.apply_updates(params, updates), state

    return step


def assert_close(actual, expected, rtol, atol=1e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol, atol), actual, expected
    )


def assert_converges(case, target, dtype):
    tx = case.make()
    params, goal, objective = target(dtype)
    # A no-op change, to verify that map_params works.
    state = optax.tree.map_params(tx, lambda leaf: leaf, tx.init(params))
    step = step_of(case, tx, objective)

    @jax.jit
    def run(carry):
        return jax.lax.scan(
            lambda carry, _: (step(*carry), None), carry, length=10_000
        )[0]

    params, _ = run((params, state))
    assert_close(params, goal, rtol=3e-2, atol=3e-2)


@all_cases
@pytest.mark.parametrize("target", [parabola, rosenbrock, matrix_parabola, mixed_ranks])
def test_optimization_converges(case, target):
    assert_converges(case, target, jnp.float32)


@pytest.mark.parametrize("target", [parabola, rosenbrock])
@pytest.mark.parametrize("name", [n for n, case in ALL.items() if case.takes_complex])
def test_complex_optimization_converges(name, target):
    assert_converges(ALL[name], target, jnp.complex64)


@all_cases
def test_unexpected_arguments_cause_no_recompilation(case):
    tx = case.make()
    params, _, objective = rosenbrock(jnp.float32)
    step = step_of(case, tx, objective, unexpected_extra_argument=1)
    traced = []

    @jax.jit
    def counted(params, state):
        traced.append(1)
        return step(params, state)

    state = tx.init(params)
    for _ in range(3):
        params, state = counted(params, state)
    assert traced == [1] and counted._cache_size() == 1


@plain_cases
def test_injected_hyperparameters_change_nothing(case):
    """Updates and states are the same, for a list of layers and under jit."""
    params = [{"kernel": -jnp.ones((2, 3))}, {"kernel": jnp.ones((5, 2))}]
    grads = jax.tree.map(jnp.negative, params)
    by_name = {str(number): layer for number, layer in enumerate(params)}
    results = []
    for factory in (case.factory, optax.inject_hyperparams(case.factory)):
        tx = factory(**case.options)
        state = jax.jit(tx.init)(params)
        kwargs = case.update_kwargs(by_name, jnp.array(1.0))
        results.append(jax.jit(tx.update)(grads, state, params, **kwargs))
    (updates, state), (injected_updates, injected_state) = results
    assert_close(injected_updates, updates, rtol=1e-5)
    inner = injected_state.inner_state
    assert jax.tree.structure(inner) == jax.tree.structure(state)
    assert_close(inner, state, rtol=1e-5, atol=1e-5)


REAL = ["float16", "bfloat16", "float32", "float64"]
COMPLEX = ["complex64", "complex128"]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype)
        for name, case in ALL.items()
        for dtype in REAL + COMPLEX * case.takes_complex
    ],
)
def test_shapes_and_dtypes_of_the_state_are_stable(name, dtype):
    """So are those of the updates, whatever the dtype of the loss."""
    case = ALL[name]
    with jax.enable_x64(dtype in ("float64", "complex128")):
        tx = case.make()
        params, _, objective = parabola(jnp.dtype(dtype))
        other = jnp.float32 if dtype == "float16" else jnp.float16

        def step(params, state, taken):
            value, grads = jax.value_and_grad(objective)(params)
            kwargs = case.update_kwargs(params, value.astype(other))
            return jax.lax.cond(
                taken,
                lambda: tx.update(grads, state, params, **kwargs),
                lambda: (params, state),
            )

        state = tx.init(params)
        updates, after = jax.eval_shape(step, params, state, True)
        assert specs(updates) == specs(params)
        assert specs(after) == specs(state)


def specs(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


@all_cases
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("wrapper", [optax.MultiSteps, MultiSteps])
def test_only_the_last_micro_step_moves_the_parameters(case, dtype, wrapper):
    tx = wrapper(case.make(), every_k_schedule=4)
    params, _, objective = parabola(jnp.dtype(dtype))
    value, grads = jax.value_and_grad(objective)(params)
    kwargs = case.update_kwargs(params, value)
    with warnings.catch_warnings():
        # Optax uses the norms of the last micro-batch only; here all are equal.
        warnings.filterwarnings("ignore", "optax.MultiSteps averages")
        state = jax.jit(tx.init)(params)
    update = jax.jit(tx.update)
    for micro_step in range(4):
        updates, state = update(grads, state, params, **kwargs)
        assert updates["layer"]["kernel"].shape == (3, 1)
        moved = bool(jnp.any(updates["layer"]["kernel"] != 0))
        assert moved == (micro_step == 3)


@plain_cases
def test_a_constant_schedule_equals_a_number(case):
    params, _, objective = parabola(jnp.float32)
    results = []
    for rate in (1e-3, optax.constant_schedule(1e-3)):
        tx = case.make(learning_rate=rate)
        step = jax.jit(step_of(case, tx, objective))
        carry = params, tx.init(params)
        for _ in range(10):
            carry = step(*carry)
        results.append(carry[0])
    assert_close(results[1], results[0], rtol=1e-6)


@plain_cases
def test_the_learning_rate_is_annotated_like_optax_s(case):
    annotation = case.factory.__annotations__["learning_rate"]
    assert annotation == optax.ScalarOrSchedule
