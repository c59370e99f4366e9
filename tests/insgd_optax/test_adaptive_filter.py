"""Adaptive filters against plain NumPy, padasip and their convergence bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import padasip
import pytest

from insgd_optax._adaptive_filter import FilterResult, lms_filter, nlms_filter
from tests.insgd_optax.filter_signals import assert_same, signals
from tests.insgd_optax.references import nlms_reference

OK = {"num_taps": 2, "step_size": 0.5}


@pytest.mark.parametrize("complex_valued", [False, True])
@pytest.mark.parametrize("p", [1, 2, 3.5])
def test_nlms_matches_the_reference(x64, p, complex_valued):
    u, d, _ = signals(complex_valued=complex_valued)
    options = {"num_taps": 7, "step_size": 0.7, "p": p, "eps": 0.02}
    result = nlms_filter(u, d, **options)
    assert result.weights.shape == (200, 7)
    assert_same(result, nlms_reference.nlms(u, d, **options), 1e-10)


@pytest.mark.parametrize("complex_valued", [False, True])
def test_lms_matches_the_reference(x64, complex_valued):
    u, d, _ = signals(complex_valued=complex_valued)
    result = lms_filter(u, d, num_taps=7, step_size=0.03)
    assert_same(result, nlms_reference.nlms(u, d, 7, 0.03, p=None), 1e-10)


def test_infinity_norm_divides_by_the_largest_magnitude(x64):
    u, d, _ = signals(num_samples=5)
    result = nlms_filter(u, d, num_taps=1, step_size=0.5, p=np.inf, eps=0.1)
    by_l1 = nlms_reference.nlms(u, d, 1, 0.5, p=1, eps=0.1)  # the same for one tap
    assert_same(result, by_l1, 1e-12)


def test_nlms_matches_padasip(x64):
    u, d, _ = signals()
    reference = padasip.filters.FilterNLMS(7, mu=0.7, eps=0.02, w="zeros")
    outputs, errors, weights_before = reference.run(d, nlms_reference.windows(u, 7))
    result = nlms_filter(u, d, num_taps=7, step_size=0.7, eps=0.02)
    np.testing.assert_allclose(result.outputs, outputs, rtol=0, atol=1e-9)
    np.testing.assert_allclose(result.errors, errors, rtol=0, atol=1e-9)
    # padasip records the weights before each update, this library those after it.
    np.testing.assert_allclose(
        result.weights[:-1], weights_before[1:], rtol=0, atol=1e-9
    )
    np.testing.assert_allclose(result.weights[-1], reference.w, rtol=0, atol=1e-9)


def test_lms_matches_padasip(x64):
    u, d, _ = signals()
    reference = padasip.filters.FilterLMS(7, mu=0.03, w="zeros")
    outputs, *_ = reference.run(d, nlms_reference.windows(u, 7))
    result = lms_filter(u, d, num_taps=7, step_size=0.03)
    np.testing.assert_allclose(result.outputs, outputs, rtol=0, atol=1e-9)
    np.testing.assert_allclose(result.weights[-1], reference.w, rtol=0, atol=1e-9)


def test_complex_weights_converge_to_the_impulse_response_itself():
    u, d, system = signals(2000, complex_valued=True)
    result = nlms_filter(u, d, num_taps=6, step_size=0.2)
    np.testing.assert_allclose(result.weights[-1], system, atol=0.02)


def test_first_weights_continue_a_filter(x64):
    u, d, _ = signals()
    first = np.linspace(-1, 1, 4)
    options = {"num_taps": 4, "step_size": 0.5, "weights": first}
    result = nlms_filter(u, d, **options)
    assert_same(result, nlms_reference.nlms(u, d, **options), 1e-10)


def test_without_history_only_the_last_weights_are_returned():
    u, d, _ = signals()
    every = nlms_filter(u, d, num_taps=4, step_size=0.5)
    last = nlms_filter(u, d, num_taps=4, step_size=0.5, weight_history=False)
    np.testing.assert_array_equal(last.weights, every.weights[-1:])
    np.testing.assert_array_equal(last.errors, every.errors)


@pytest.mark.parametrize("num_samples", [1, 2, 3, 5])
def test_signals_shorter_than_the_filter_match_the_reference(x64, num_samples):
    u, d, _ = signals(num_samples)
    result = nlms_filter(u, d, num_taps=4, step_size=0.5)
    assert_same(result, nlms_reference.nlms(u, d, 4, 0.5), 1e-12)


@pytest.mark.parametrize("p", [1, 2, 3, np.inf])
@pytest.mark.parametrize("eps", [0.0, 1e-3])
def test_silence_changes_no_weight(p, eps):
    d = np.ones(20, np.float32)
    first = np.array([1.0, 2.0], np.float32)
    result = nlms_filter(
        np.zeros(20), d, num_taps=2, step_size=1.0, p=p, eps=eps, weights=first
    )
    np.testing.assert_array_equal(result.weights, np.tile(first, (20, 1)))
    np.testing.assert_array_equal(result.errors, d)


def test_silence_in_mid_signal_keeps_the_weights():
    u, d, _ = signals()
    u[100:], d[100:] = 0.0, 0.0
    result = nlms_filter(u, d, num_taps=6, step_size=1.0, eps=0.0)
    assert np.all(np.isfinite(result.weights))
    np.testing.assert_array_equal(result.weights[-1], result.weights[106])


@pytest.mark.parametrize(
    "u_dtype, d_dtype, expected",
    [
        (np.float32, np.float32, np.float32),
        (np.float64, np.float32, np.float64),
        (np.float32, np.complex64, np.complex64),
        (np.complex64, np.float64, np.complex128),
        (np.int16, np.int32, np.float64),
        (jnp.bfloat16, jnp.bfloat16, np.float32),
    ],
)
def test_the_dtype_of_the_results_follows_from_the_signals(
    x64, u_dtype, d_dtype, expected
):
    u, d = jnp.arange(5).astype(u_dtype), jnp.arange(5).astype(d_dtype)
    for result in (
        nlms_filter(u, d, num_taps=2, step_size=np.float64(0.5)),
        lms_filter(u, d, num_taps=2, step_size=0.5),
    ):
        assert {array.dtype for array in result} == {np.dtype(expected)}


def test_complex_initial_weights_give_complex_results():
    first = [1.0 + 1.0j, 0.0]
    result = nlms_filter([1.0, 2.0], [1.0, 2.0], weights=first, **OK)
    assert result.weights.dtype == np.complex64


def test_integers_become_float32_if_float64_is_disabled():
    result = nlms_filter([1, 2, 3], [1, 2, 3], num_taps=1, step_size=1.0)
    assert result.weights.dtype == np.float32


def test_vmap_gives_the_result_of_each_channel():
    pairs = [signals(seed=seed)[:2] for seed in range(3)]
    u, d = (jnp.stack(channel) for channel in zip(*pairs, strict=True))
    result = jax.vmap(lambda u, d: nlms_filter(u, d, num_taps=4, step_size=0.5))(u, d)
    assert isinstance(result, FilterResult)
    for channel, (one_u, one_d) in enumerate(pairs):
        alone = nlms_filter(one_u, one_d, num_taps=4, step_size=0.5)
        np.testing.assert_allclose(
            result.weights[channel], alone.weights, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("transform", [jax.vmap, lambda f: jax.jit(jax.vmap(f))])
def test_step_size_and_eps_may_be_traced(transform):
    u, d, _ = signals()
    sizes, eps = jnp.array([0.1, 0.5, 1.5]), jnp.array([0.0, 1e-3, 1.0])

    def last_weights(step_size, eps):
        return nlms_filter(u, d, num_taps=4, step_size=step_size, eps=eps).weights[-1]

    together = transform(last_weights)(sizes, eps)
    for row, one, one_eps in zip(together, sizes, eps, strict=True):
        np.testing.assert_allclose(row, last_weights(one, one_eps), rtol=1e-4)


def test_the_error_is_differentiable_in_the_step_size():
    u, d, _ = signals()

    def power(step_size):
        return jnp.mean(lms_filter(u, d, num_taps=6, step_size=step_size).errors ** 2)

    slope = jax.grad(power)(0.01)
    assert np.isfinite(slope) and slope < 0  # far below the best one: larger is better


def test_a_second_call_compiles_nothing(caplog):
    u, d, _ = signals(43)  # a length that no other test uses: the first call compiles
    compiled = []
    with jax.log_compiles(True):
        for step_size, eps in ((0.5, 1e-3), (0.25, 0.5)):
            caplog.clear()
            nlms_filter(u, d, num_taps=3, step_size=step_size, eps=eps)
            compiled.append(any("_run" in r.getMessage() for r in caplog.records))
    assert compiled == [True, False]


@pytest.mark.parametrize(
    "u, d, options, message",
    [
        (np.ones((3, 2)), np.ones(3), OK, r"u must be one signal.*\(3, 2\).*vmap"),
        (np.ones(3), np.float32(1), OK, r"d must be one signal of shape \(T,\)"),
        (np.ones(3), np.ones(4), OK, "u has 3 samples and d 4"),
        (np.ones(0), np.ones(0), OK, "empty"),
        (np.ones(3), np.ones(3), OK | {"num_taps": 0}, "at least one tap"),
        (np.ones(3), np.ones(3), OK | {"num_taps": 2.0}, "num_taps=2.0.*whole"),
        (np.ones(3), np.ones(3), OK | {"weights": np.ones(3)}, r"weights .* \(2,\)"),
        (np.ones(3), np.ones(3), OK | {"step_size": 0.0}, "step_size=0.0.*positive"),
        (np.ones(3), np.ones(3), OK | {"step_size": -1}, "step_size=-1"),
        (np.ones(3), np.ones(3), OK | {"step_size": np.nan}, "step_size=nan"),
        (np.ones(3), np.ones(3), OK | {"step_size": np.inf}, "step_size=inf"),
        (np.ones(3), np.ones(3), OK | {"step_size": 1j}, "step_size=1j"),
        (np.ones(3), np.ones(3), OK | {"step_size": np.ones(2)}, r"step_size .*vmap"),
    ],
)
@pytest.mark.parametrize("run", [lms_filter, nlms_filter])
def test_invalid_arguments_are_errors(run, u, d, options, message):
    with pytest.raises(ValueError, match=message):
        run(u, d, **options)


@pytest.mark.parametrize(
    "option, message",
    [
        ({"eps": -1e-3}, "eps=-0.001.*>= 0"),
        ({"eps": np.nan}, "eps=nan"),
        ({"p": 0.5}, "p=0.5"),
        ({"p": "2"}, "p='2'"),
    ],
)
def test_invalid_normalization_options_are_errors(option, message):
    with pytest.raises(ValueError, match=message):
        nlms_filter(np.ones(3), np.ones(3), **OK, **option)


# The bounds on the step size that the docstrings and the docs give.


def misalignment(result, system):
    """||w - system|| / ||system|| after each sample."""
    difference = np.asarray(result.weights) - system
    return np.linalg.norm(difference, axis=1) / np.linalg.norm(system)


def noiseless(num_samples, scale=1.0):
    u, _, system = signals(num_samples)
    return scale * u, np.convolve(scale * u, system)[:num_samples], system


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(
    "step_size, converges", [(0.1, True), (1.0, True), (1.9, True), (2.1, False)]
)
def test_nlms_converges_below_two_at_any_scale(x64, scale, step_size, converges):
    u, d, system = noiseless(3000, scale)
    result = nlms_filter(u, d, num_taps=6, step_size=step_size, eps=0.0)
    last = misalignment(result, system)[-1]
    assert last < 1e-6 if converges else last > 1e6


@pytest.mark.parametrize("step_size", [0.5, 1.0, 1.99])
def test_nlms_never_moves_away_from_a_noiseless_system(x64, step_size):
    u, d, system = noiseless(200)
    result = nlms_filter(u, d, num_taps=6, step_size=step_size, eps=0.0)
    assert np.all(np.diff(misalignment(result, system)) <= 1e-12)


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_the_l1_bound_is_two_over_the_largest_input(x64, scale):
    u, d, system = noiseless(3000, scale)
    bound = 2 / np.max(np.abs(u))
    below = nlms_filter(u, d, num_taps=6, step_size=0.99 * bound, p=1, eps=0.0)
    assert np.all(np.diff(misalignment(below, system)) <= 1e-12)
    assert misalignment(below, system)[-1] < 1e-6
    u, d = u[:300], d[:300]  # any longer, and the weights overflow
    beyond = nlms_filter(u, d, num_taps=6, step_size=5 * bound, p=1, eps=0.0)
    assert misalignment(beyond, system)[-1] > 1e6


def test_lms_converges_below_the_bound_of_every_window(x64):
    u, d, system = noiseless(3000)
    bound = 2 / np.max(np.sum(nlms_reference.windows(u, 6) ** 2, axis=1))
    below = lms_filter(u, d, num_taps=6, step_size=0.99 * bound)
    assert np.all(np.diff(misalignment(below, system)) <= 1e-12)
    assert misalignment(below, system)[-1] < 1e-6


def test_lms_diverges_where_nlms_converges(x64):
    # Below 2 / lambda_max(R) = 2, but beyond the mean-square bound 2 / (6 + 2).
    u, d, system = noiseless(100)
    result = lms_filter(u, d, num_taps=6, step_size=1.0)
    assert misalignment(result, system)[-1] > 1e6
