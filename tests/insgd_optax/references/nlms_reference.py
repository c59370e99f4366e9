"""Eq. 6-9 in plain NumPy: one Python loop, not optimized for speed."""

import numpy as np


def windows(u, num_taps):
    """(T, num_taps): the newest sample first, zeros before the signal starts."""
    rows = []
    for t in range(len(u)):
        rows.append([u[t - i] if t >= i else 0.0 for i in range(num_taps)])
    return np.array(rows)


def nlms(u, d, num_taps, step_size, p=2, eps=1e-3, weights=None):
    """Returns weights after each sample, outputs and errors; `p=None` is LMS."""
    w = np.zeros(num_taps) if weights is None else np.array(weights)
    history, outputs, errors = [], [], []
    for x, d_t in zip(windows(u, num_taps), d, strict=True):
        output = np.sum(x * w)
        error = d_t - output
        divisor = 1.0 if p is None else eps + np.sum(np.abs(x) ** p)
        w = w + step_size * error * np.conj(x) / divisor
        history.append(w)
        outputs.append(output)
        errors.append(error)
    return np.array(history), np.array(outputs), np.array(errors)
