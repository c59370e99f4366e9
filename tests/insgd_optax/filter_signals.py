"""Signals for the tests of adaptive filters, and the comparison of their results."""

import numpy as np


def signals(num_samples=200, *, complex_valued=False, color=0.0, seed=0, noise=0.01):
    """u_t = color u_{t-1} + white noise, and a system of six taps."""
    rng = np.random.default_rng(seed)

    def draw(n):
        x = rng.standard_normal(n)
        return x + 1j * rng.standard_normal(n) if complex_valued else x

    u, system = draw(num_samples), draw(6)
    for t in range(1, num_samples if color else 0):
        u[t] += color * u[t - 1]
    d = np.convolve(u, system)[:num_samples] + noise * draw(num_samples)
    return u, d, system


def assert_same(result, expected, tolerance):
    """Compares weights, outputs and errors of a filter with those of a reference."""
    for ours, reference in zip(result, expected, strict=True):
        assert ours.shape == reference.shape
        np.testing.assert_allclose(ours, reference, rtol=tolerance, atol=tolerance)
