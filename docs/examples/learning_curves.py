"""Draws the learning curves of docs/adaptive_filtering.md and prints their table.

Six filters identify an unknown system, from white and from colored input.

python docs/examples/learning_curves.py [FOLDER]
"""

import functools
import pathlib
import sys

import jax
import numpy as np
from matplotlib import pyplot as plt

from insgd_optax import (
    affine_projection_filter,
    lms_filter,
    nlms_filter,
    rls_filter,
)

NUM_TAPS, NUM_SAMPLES = 32, 6000
SEEDS = range(20)
COLORS = {"White input": 0.0, "Colored input, AR(1) with coefficient 0.95": 0.95}
THRESHOLD = -20  # dB

# With step sizes that give about the same final misalignment on white input.
FILTERS = {
    "LMS": functools.partial(lms_filter, step_size=0.2 / NUM_TAPS),
    "NLMS": functools.partial(nlms_filter, step_size=0.2),
    "affine projection, order 2": functools.partial(
        affine_projection_filter, order=2, step_size=0.1
    ),
    "affine projection, order 8": functools.partial(
        affine_projection_filter, order=8, step_size=0.025
    ),
    "RLS": functools.partial(rls_filter, forgetting=0.995),
}
NEWTON_STEP = 0.005


def signals(color, seed, num_samples=NUM_SAMPLES):
    """u_t = color u_{t-1} + white noise, of unit power; d 30 dB above its noise."""
    rng = np.random.default_rng(seed)
    system = rng.standard_normal(NUM_TAPS)
    system /= np.linalg.norm(system)
    u = rng.standard_normal(num_samples)
    u[1:] *= np.sqrt(1 - color**2)
    for t in range(1, num_samples):
        u[t] += color * u[t - 1]
    clean = np.convolve(u, system)[:num_samples]
    noise = np.sqrt(system @ covariance(color) @ system) * 10 ** (-30 / 20)
    return u, clean + noise * rng.standard_normal(num_samples), system


def covariance(color):
    """R = E[x x^T] of the input's windows: color^|i - j|."""
    taps = np.arange(NUM_TAPS)
    return float(color) ** np.abs(taps[:, None] - taps)


def lms_newton(u, d, color):
    """Weights after each sample of w <- w + step R^-1 x e, with the true R."""
    inverse, w, history = np.linalg.inv(covariance(color)), np.zeros(NUM_TAPS), []
    padded = np.concatenate([np.zeros(NUM_TAPS - 1), u])
    windows = np.lib.stride_tricks.sliding_window_view(padded, NUM_TAPS)[:, ::-1]
    for x, d_t in zip(windows, d, strict=True):
        w = w + NEWTON_STEP * (d_t - x @ w) * (inverse @ x)
        history.append(w)
    return np.array(history)


def learning_curves(color, seeds=SEEDS, num_samples=NUM_SAMPLES):
    """{filter: mean over the seeds of ||w - system||^2 / ||system||^2, in dB}."""
    powers = {}
    for seed in seeds:
        u, d, system = signals(color, seed, num_samples)
        fits = {
            name: run(u, d, num_taps=NUM_TAPS).weights for name, run in FILTERS.items()
        }
        fits["LMS-Newton, known R"] = lms_newton(u, d, color)
        for name, weights in fits.items():
            distance = np.sum((np.asarray(weights) - system) ** 2, axis=1)
            powers.setdefault(name, []).append(distance)
    return {name: 10 * np.log10(np.mean(runs, axis=0)) for name, runs in powers.items()}


def samples_until(curve, threshold=THRESHOLD):
    """The first sample at which the curve is below the threshold, or None."""
    below = np.flatnonzero(curve < threshold)
    return int(below[0]) if below.size else None


def draw(path, seeds=SEEDS, num_samples=NUM_SAMPLES):
    figure, panels = plt.subplots(
        1, 2, figsize=(9.5, 4.2), sharey=True, layout="constrained"
    )
    figure.suptitle(f"Learning curves of {NUM_TAPS} taps, mean of {len(seeds)} seeds")
    rows = {}
    for axes, (title, color) in zip(panels, COLORS.items(), strict=True):
        curves = learning_curves(color, seeds, num_samples)
        for name, curve in curves.items():
            axes.plot(curve, label=name, linewidth=1)
            rows.setdefault(name, []).extend(
                [samples_until(curve), f"{curve[-500:].mean():.0f} dB"]
            )
        axes.set(title=title, xlabel="sample")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("misalignment, dB")
    panels[0].legend(loc="upper right", fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    images = pathlib.Path(__file__).parent.parent / "images"
    jax.config.update("jax_enable_x64", True)
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else images
    draw(folder / "learning_curves.png")
