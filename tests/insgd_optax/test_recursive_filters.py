"""RLS and affine projection against plain NumPy, padasip and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import padasip
import pytest

from insgd_optax import (
    FilterResult,
    affine_projection_filter,
    nlms_filter,
    rls_filter,
)
from tests.insgd_optax.filter_signals import assert_same, signals
from tests.insgd_optax.references import recursive_reference
from tests.insgd_optax.references.nlms_reference import windows

RLS = {"num_taps": 5, "forgetting": 0.98, "delta": 0.1}
AP = {"num_taps": 5, "order": 3, "step_size": 0.7, "eps": 0.02}
FILTERS = pytest.mark.parametrize(
    "run, options", [(rls_filter, RLS), (affine_projection_filter, AP)]
)


# The rules


@pytest.mark.parametrize("complex_valued", [False, True])
@pytest.mark.parametrize("color", [0.0, 0.95])
@pytest.mark.parametrize("forgetting, delta", [(1.0, 0.01), (0.95, 2.0)])
def test_rls_matches_the_reference(x64, complex_valued, color, forgetting, delta):
    u, d, _ = signals(complex_valued=complex_valued, color=color)
    options = {"num_taps": 7, "forgetting": forgetting, "delta": delta}
    result = rls_filter(u, d, **options)
    assert result.weights.shape == (200, 7)
    assert_same(result, recursive_reference.rls(u, d, **options), 1e-10)


@pytest.mark.parametrize("complex_valued", [False, True])
@pytest.mark.parametrize("color", [0.0, 0.95])
@pytest.mark.parametrize("order", [1, 2, 5, 9])  # more samples than taps, too
def test_affine_projection_matches_the_reference(x64, complex_valued, color, order):
    u, d, _ = signals(complex_valued=complex_valued, color=color)
    options = {"num_taps": 7, "order": order, "step_size": 0.7, "eps": 0.02}
    result = affine_projection_filter(u, d, **options)
    assert result.weights.shape == (200, 7)
    assert_same(result, recursive_reference.affine_projection(u, d, **options), 1e-10)


def assert_matches_padasip(result, reference, u, d):
    outputs, errors, weights_before = reference.run(d, windows(u, 7))
    after = np.concatenate([weights_before[1:], reference.w[None]])
    assert_same(result, (after, outputs, errors), 1e-9)


def test_rls_matches_padasip(x64):
    u, d, _ = signals(color=0.9)
    reference = padasip.filters.FilterRLS(7, mu=0.98, eps=0.1, w="zeros")
    result = rls_filter(u, d, num_taps=7, forgetting=0.98, delta=0.1)
    assert_matches_padasip(result, reference, u, d)


def test_affine_projection_matches_padasip(x64):
    u, d, _ = signals(color=0.9)
    reference = padasip.filters.FilterAP(7, mu=0.5, order=4, ifc=0.02, w="zeros")
    result = affine_projection_filter(
        u, d, num_taps=7, order=4, step_size=0.5, eps=0.02
    )
    assert_matches_padasip(result, reference, u, d)


@pytest.mark.parametrize("complex_valued", [False, True])
@pytest.mark.parametrize("eps", [0.0, 0.05])
def test_affine_projection_of_order_one_is_nlms(x64, complex_valued, eps):
    u, d, _ = signals(complex_valued=complex_valued)
    options = {"num_taps": 7, "step_size": 0.7, "eps": eps}
    result = affine_projection_filter(u, d, order=1, **options)
    assert_same(result, nlms_filter(u, d, **options), 1e-12)


def test_a_full_step_of_affine_projection_leaves_no_error(x64):
    u, d, _ = signals(noise=1.0)
    result = affine_projection_filter(u, d, num_taps=7, order=3, step_size=1.0, eps=0.0)
    x = windows(u, 7)
    for back in range(3):
        after = np.sum(x[10 - back : 200 - back] * result.weights[10:], axis=1)
        np.testing.assert_allclose(after, d[10 - back : 200 - back], atol=1e-9)


@pytest.mark.parametrize("complex_valued", [False, True])
@pytest.mark.parametrize("forgetting, delta", [(1.0, 1e-3), (0.9, 1.0)])
def test_rls_is_weighted_least_squares(x64, complex_valued, forgetting, delta):
    u, d, _ = signals(60, complex_valued=complex_valued, color=0.9)
    first = np.linspace(-1, 1, 5)
    options = {"num_taps": 5, "forgetting": forgetting, "delta": delta}
    result = rls_filter(u, d, weights=first, **options)
    expected = recursive_reference.least_squares(u, d, weights=first, **options)
    np.testing.assert_allclose(result.weights, expected, rtol=1e-8, atol=1e-8)


@FILTERS
def test_complex_weights_converge_to_the_impulse_response_itself(run, options):
    u, d, system = signals(2000, complex_valued=True)
    result = run(u, d, **options | {"num_taps": 6})
    np.testing.assert_allclose(result.weights[-1], system, atol=0.03)


# Convergence


def misalignment(result, system, sample):
    difference = np.asarray(result.weights[sample]) - system
    return np.linalg.norm(difference) / np.linalg.norm(system)


def test_colored_input_slows_only_nlms(x64):
    u, d, system = signals(400, color=0.95, noise=0.0)
    nlms = nlms_filter(u, d, num_taps=6, step_size=0.5)
    projection = affine_projection_filter(u, d, num_taps=6, order=2, step_size=0.5)
    rls = rls_filter(u, d, num_taps=6)
    assert misalignment(nlms, system, 100) > 0.1
    assert misalignment(projection, system, 100) < 0.01
    assert misalignment(rls, system, 100) < 0.01


@pytest.mark.parametrize("step_size, converges", [(1.9, True), (2.1, False)])
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_affine_projection_converges_below_two(x64, scale, step_size, converges):
    u, d, system = signals(2000, noise=0.0)
    result = affine_projection_filter(
        scale * u, scale * d, num_taps=6, order=3, step_size=step_size, eps=0.0
    )
    last = misalignment(result, system, -1)
    assert last < 1e-6 if converges else last > 1e6


# Rounding: float32 on inputs that leave directions without information


def hard_input(kind, num_samples=20_000):
    t = np.arange(num_samples)
    noise = np.random.default_rng(1).standard_normal(num_samples)
    return {
        "sinusoid": np.sin(0.3 * t),
        "constant": np.ones(num_samples),
        "loud": 1e4 * noise,
        "faint": 1e-4 * noise,
        "bursts": np.where((t // 5000) % 2 == 0, noise, 0.0),
        "sinusoid, then noise": np.where(t < 15_000, np.sin(0.3 * t), noise),
    }[kind]


HARD = pytest.mark.parametrize(
    "kind",
    ["sinusoid", "constant", "loud", "faint", "bursts", "sinusoid, then noise"],
)


def hard_signals(kind):
    u = hard_input(kind)
    system = np.random.default_rng(2).standard_normal(8)
    clean = np.convolve(u, system)[: u.size]
    noise = np.std(clean) * np.random.default_rng(3).standard_normal(u.size)
    return u.astype(np.float32), (clean + 1e-2 * noise).astype(np.float32)


@HARD
def test_rls_in_float32_stays_at_the_noise_level(kind):
    u, d = hard_signals(kind)
    result = rls_filter(u, d, num_taps=8)
    assert np.all(np.isfinite(result.weights))
    last = np.asarray(result.errors[-2000:])
    assert np.sqrt(np.mean(last**2)) < 0.015 * np.std(d)


@pytest.mark.parametrize("num_taps, forgetting", [(64, 0.5), (16, 0.1)])
def test_rls_in_float32_stays_bounded_with_less_memory_than_taps(num_taps, forgetting):
    u, d, _ = signals(4000, noise=0.0)
    u, d = u.astype(np.float32), d.astype(np.float32)
    result = rls_filter(u, d, num_taps=num_taps, forgetting=forgetting)
    assert np.max(np.abs(result.weights[500:])) < 10
    assert np.max(np.abs(result.errors[-500:])) < 1e-4
    silent = rls_filter(0 * u, d, num_taps=num_taps, forgetting=forgetting)
    np.testing.assert_array_equal(silent.weights, 0)


def test_rls_in_float32_tracks_a_change_under_a_sinusoid():
    u = np.sin(0.3 * np.arange(8000))
    d = np.convolve(u, [1.0, -0.5])[:8000]
    d[7000:] *= -1
    result = rls_filter(u.astype(np.float32), d.astype(np.float32), num_taps=16)
    assert abs(result.errors[7000]) > 0.5
    assert np.max(np.abs(result.errors[7900:])) < 1e-3


@HARD
@pytest.mark.parametrize("order", [2, 12])
def test_affine_projection_in_float32_stays_finite(kind, order):
    u, d = hard_signals(kind)
    result = affine_projection_filter(
        u, d, num_taps=8, order=order, step_size=0.5, eps=0.0
    )
    assert np.all(np.isfinite(result.weights))
    last = np.asarray(result.errors[-2000:])
    assert np.sqrt(np.mean(last**2)) < 0.1 * np.std(d)


def test_rls_in_float32_matches_float64_after_many_samples(x64):
    u, d, _ = signals(100_000, color=0.95)
    options = {"num_taps": 8, "forgetting": 0.995, "weight_history": False}
    narrow = rls_filter(u.astype(np.float32), d.astype(np.float32), **options)
    wide = rls_filter(u, d, **options)
    assert narrow.weights.dtype == np.float32
    np.testing.assert_allclose(narrow.weights, wide.weights, atol=1e-4)


@pytest.mark.parametrize(
    "run, options",
    [
        (rls_filter, RLS),
        (affine_projection_filter, AP),
        (affine_projection_filter, AP | {"eps": 0.0}),
    ],
)
def test_silence_changes_no_weight(run, options):
    d, first = np.ones(50, np.float32), np.arange(5, dtype=np.float32)
    result = run(np.zeros(50), d, weights=first, **options)
    np.testing.assert_array_equal(result.weights, np.tile(first, (50, 1)))
    np.testing.assert_array_equal(result.errors, d)


# The same arguments as the other filters


@FILTERS
def test_first_weights_continue_a_filter(x64, run, options):
    u, d, _ = signals()
    first = np.linspace(-1, 1, 5)
    reference = {
        rls_filter: recursive_reference.rls,
        affine_projection_filter: recursive_reference.affine_projection,
    }[run]
    result = run(u, d, weights=first, **options)
    assert_same(result, reference(u, d, weights=first, **options), 1e-10)


@FILTERS
@pytest.mark.parametrize("num_samples", [1, 3, 100])
def test_without_history_only_the_last_weights_are_returned(run, options, num_samples):
    u, d, _ = signals(num_samples)
    every = run(u, d, **options)
    last = run(u, d, weight_history=False, **options)
    assert isinstance(last, FilterResult)
    np.testing.assert_allclose(last.weights, every.weights[-1:], rtol=1e-5)
    np.testing.assert_allclose(last.errors, every.errors, rtol=1e-4, atol=1e-5)


@FILTERS
@pytest.mark.parametrize(
    "u_dtype, d_dtype, expected",
    [
        (np.float32, np.float32, np.float32),
        (np.float32, np.complex64, np.complex64),
        (np.complex64, np.float64, np.complex128),
        (np.int16, np.int32, np.float64),
        (jnp.bfloat16, jnp.bfloat16, np.float32),
    ],
)
def test_the_dtype_of_the_results_follows_from_the_signals(
    x64, run, options, u_dtype, d_dtype, expected
):
    u, d = jnp.arange(5).astype(u_dtype), jnp.arange(5).astype(d_dtype)
    result = run(u, d, **options)
    assert {array.dtype for array in result} == {np.dtype(expected)}


@FILTERS
def test_vmap_gives_the_result_of_each_channel(x64, run, options):
    pairs = [signals(seed=seed)[:2] for seed in range(3)]
    u, d = (jnp.stack(channel) for channel in zip(*pairs, strict=True))
    result = jax.jit(jax.vmap(functools.partial(run, **options)))(u, d)
    for channel, (one_u, one_d) in enumerate(pairs):
        alone = run(one_u, one_d, **options)
        np.testing.assert_allclose(result.weights[channel], alone.weights, rtol=1e-9)


@pytest.mark.parametrize(
    "run, options, traced",
    [
        (rls_filter, RLS, {"forgetting": [0.9, 1.0], "delta": [1e-3, 1.0]}),
        (affine_projection_filter, AP, {"step_size": [0.1, 1.5], "eps": [0.0, 1.0]}),
    ],
)
def test_numbers_may_be_traced(x64, run, options, traced):
    u, d, _ = signals()

    def last_weights(numbers):
        return run(u, d, **options | numbers).weights[-1]

    together = jax.vmap(last_weights)({k: jnp.array(v) for k, v in traced.items()})
    for i, row in enumerate(together):
        alone = last_weights({name: values[i] for name, values in traced.items()})
        np.testing.assert_allclose(row, alone, rtol=1e-8)


@pytest.mark.parametrize(
    "run, options, name",
    [(rls_filter, RLS, "forgetting"), (affine_projection_filter, AP, "step_size")],
)
def test_the_error_is_differentiable(x64, run, options, name):
    u, d, _ = signals(noise=1.0)

    def power(number):
        return jnp.mean(run(u, d, **options | {name: number}).errors ** 2)

    slope = jax.grad(power)(options[name])
    step = 1e-6
    difference = power(options[name] + step) - power(options[name] - step)
    np.testing.assert_allclose(slope, difference / (2 * step), rtol=1e-4)


# Errors

ONES = np.ones(3)


@FILTERS
@pytest.mark.parametrize(
    "u, d, change, message",
    [
        (np.ones((3, 2)), ONES, {}, r"u must be one signal.*\(3, 2\).*vmap"),
        (ONES, np.ones(4), {}, "u has 3 samples and d 4"),
        (np.ones(0), np.ones(0), {}, "empty"),
        (ONES, ONES, {"num_taps": 0}, "num_taps=0.*at least one tap"),
        (ONES, ONES, {"num_taps": 2.0}, "num_taps=2.0.*whole"),
        (ONES, ONES, {"weights": ONES}, r"weights .* \(5,\)"),
    ],
)
def test_invalid_signals_are_errors(run, options, u, d, change, message):
    with pytest.raises(ValueError, match=message):
        run(u, d, **options | change)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"forgetting": 0.0}, "forgetting=0.0.*positive"),
        ({"forgetting": -0.5}, "forgetting=-0.5"),
        ({"forgetting": 1.01}, r"forgetting=1.01.*\(0, 1\]"),
        ({"forgetting": np.nan}, "forgetting=nan"),
        ({"forgetting": 1j}, "forgetting=1j"),
        ({"forgetting": ONES}, "forgetting must be one number.*vmap"),
        ({"delta": 0.0}, "delta=0.0.*positive"),
        ({"delta": -1.0}, "delta=-1.0"),
        ({"delta": np.inf}, "delta=inf"),
        ({"delta": ONES}, "delta must be one number.*vmap"),
    ],
)
def test_invalid_options_of_rls_are_errors(change, message):
    with pytest.raises(ValueError, match=message):
        rls_filter(ONES, ONES, **RLS | change)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"order": 0}, "order=0.*at least one sample"),
        ({"order": -2}, "order=-2"),
        ({"order": 2.0}, "order=2.0.*whole number"),
        ({"order": None}, "order=None.*whole number"),
        ({"step_size": 0.0}, "step_size=0.0.*positive"),
        ({"step_size": np.inf}, "step_size=inf"),
        ({"step_size": ONES}, "step_size must be one number.*vmap"),
        ({"eps": -1e-3}, "eps=-0.001.*>= 0"),
        ({"eps": np.nan}, "eps=nan"),
    ],
)
def test_invalid_options_of_affine_projection_are_errors(change, message):
    with pytest.raises(ValueError, match=message):
        affine_projection_filter(ONES, ONES, **AP | change)
