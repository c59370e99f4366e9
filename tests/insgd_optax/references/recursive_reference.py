"""RLS and affine projection in plain NumPy: one unoptimized Python loop."""

import numpy as np

from tests.insgd_optax.references.nlms_reference import windows


def rls(u, d, num_taps, forgetting, delta, weights=None):
    """The recursion for P itself; weights after each sample, outputs, errors."""
    w = np.zeros(num_taps) if weights is None else np.array(weights)
    p = np.eye(num_taps) / delta
    history, outputs, errors = [], [], []
    for x, d_t in zip(windows(u, num_taps), d, strict=True):
        output = x @ w
        error = d_t - output
        k = p @ np.conj(x) / (forgetting + x @ p @ np.conj(x))
        w = w + k * error
        p = (p - np.outer(k, x @ p)) / forgetting
        history.append(w)
        outputs.append(output)
        errors.append(error)
    return np.array(history), np.array(outputs), np.array(errors)


def least_squares(u, d, num_taps, forgetting, delta, weights=None):
    """(T, num_taps): row t is the closed-form minimizer of RLS's objective at t."""
    first = np.zeros(num_taps) if weights is None else np.array(weights)
    x, rows = windows(u, num_taps), []
    for t in range(len(u)):
        root = np.sqrt(forgetting ** np.arange(t, -1, -1.0))[:, None]
        prior = np.sqrt(forgetting ** (t + 1) * delta)
        a = np.concatenate([root * x[: t + 1], prior * np.eye(num_taps)])
        b = np.concatenate([root[:, 0] * d[: t + 1], prior * first])
        rows.append(np.linalg.lstsq(a, b, rcond=None)[0])
    return np.array(rows)


def affine_projection(u, d, num_taps, order, step_size, eps, weights=None):
    """Returns weights after each sample, outputs and errors."""
    w = np.zeros(num_taps) if weights is None else np.array(weights)
    every = np.concatenate([np.zeros((order - 1, num_taps)), windows(u, num_taps)])
    desired = np.concatenate([np.zeros(order - 1), d])
    history, outputs, errors = [], [], []
    for t in range(len(u)):
        x = every[t : t + order][::-1]
        e = desired[t : t + order][::-1] - x @ w
        gram = x @ np.conj(x.T) + eps * np.eye(order)
        outputs.append(x[0] @ w)
        errors.append(e[0])
        w = w + step_size * np.conj(x.T) @ np.linalg.solve(gram, e)
        history.append(w)
    return np.array(history), np.array(outputs), np.array(errors)
