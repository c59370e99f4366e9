"""Draws three pictures of docs/adaptive_filtering.md and prints its table of impulses.

python docs/examples/adaptive_filtering.py [FOLDER]
"""

import itertools
import pathlib
import sys

import jax
import numpy as np
from matplotlib import pyplot as plt

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # The application's folder.

from insgd_optax import lms_filter, nlms_filter, rls_filter

NUM_TAPS = 16
SEEDS = range(20)


def windows(u, num_taps):
    """(T, num_taps): row t is the window at sample t, newest sample first."""
    padded = np.concatenate([np.zeros(num_taps - 1), u])
    return np.lib.stride_tricks.sliding_window_view(padded, num_taps)[:, ::-1]


def decibels(ratio):
    return 20 * np.log10(np.maximum(ratio, 1e-12))


def draw_projection(path):
    """Figure 1 of the paper: weights projected in turn onto two lines that cross."""
    a, b, target, start = 2.0, 1.0, np.array([1.0, 0.5]), np.array([-0.6, 2.6])
    # The input a, b, a, b, ... has two windows, (b, a) and (a, b): two lines.
    u = np.array([a, b] * 7)
    d = windows(u, 2) @ target
    d[0] = a * start[0]  # no error while the window fills: the first step stays put
    fit = nlms_filter(u, d, num_taps=2, step_size=1.0, eps=0.0, weights=start)
    steps = np.concatenate([start[None], np.asarray(fit.weights)[1:]])

    figure, axes = plt.subplots(figsize=(5.2, 4.6), layout="constrained")
    w1 = np.array([-1.6, 2.6])
    for normal, color, label, at in (
        ((b, a), "C0", r"$d(1) = \mathbf{u}(1)^T\mathbf{w}$", (1.4, 0.42)),
        ((a, b), "C1", r"$d(2) = \mathbf{u}(2)^T\mathbf{w}$", (0.05, 2.6)),
    ):
        w2 = (np.dot(normal, target) - normal[0] * w1) / normal[1]
        axes.plot(w1, w2, color=color)
        axes.annotate(label, at, color=color)
    for before, after in itertools.pairwise(steps):
        axes.annotate(
            "",
            after,
            before,
            arrowprops={"arrowstyle": "->", "shrinkA": 0, "shrinkB": 0},
        )
    axes.plot(*steps.T, "k.")
    for j in range(3):
        axes.annotate(
            rf"$\mathbf{{w}}({j})$",
            steps[j],
            textcoords="offset points",
            xytext=[(6, 4), (-32, -10), (6, 2)][j],
        )
    axes.plot(*target, "C3*", markersize=12, zorder=3)
    axes.annotate(
        r"$\mathbf{w}^*$", target, textcoords="offset points", xytext=(-6, -18)
    )
    axes.set(
        xlim=(-1.6, 2.6),
        ylim=(-0.8, 3.0),
        aspect="equal",
        xlabel="$w_1$",
        ylabel="$w_2$",
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_step_sizes(path, num_samples=400):
    """Noiseless identification for step sizes on both sides of 2."""
    rng = np.random.default_rng(0)
    system, u = rng.standard_normal(NUM_TAPS), rng.standard_normal(num_samples)
    d = np.convolve(u, system)[:num_samples]
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for step_size in (0.1, 0.5, 1.0, 1.5, 1.9, 2.0, 2.1):
        fit = nlms_filter(u, d, num_taps=NUM_TAPS, step_size=step_size, eps=0.0)
        distance = np.linalg.norm(np.asarray(fit.weights) - system, axis=1)
        axes.plot(decibels(distance / np.linalg.norm(system)), label=f"{step_size:.1f}")
    axes.set(xlabel="sample", ylabel="misalignment, dB", ylim=(-125, 45))
    axes.legend(title=r"step size $\lambda$", ncols=2, fontsize="small")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def track(level_after, seed, num_samples=4000):
    """Misalignment of three filters whose system changes halfway.

    The input is colored, u_t = 0.7 u_{t-1} + noise, of unit power before the change
    and of amplitude `level_after` after it; the noise in d is 30 dB below unit power.
    """
    rng = np.random.default_rng(seed)
    half = num_samples // 2
    u = rng.standard_normal(num_samples) * np.sqrt(1 - 0.7**2)
    for t in range(1, num_samples):
        u[t] += 0.7 * u[t - 1]
    u[half:] *= level_after
    systems = rng.standard_normal((2, NUM_TAPS))
    systems /= np.linalg.norm(systems, axis=1, keepdims=True)
    x = windows(u, NUM_TAPS)
    d = np.concatenate([x[:half] @ systems[0], x[half:] @ systems[1]])
    d += 10 ** (-30 / 20) * rng.standard_normal(num_samples)
    fits = {
        # 0.4 / (16 taps x unit power): NLMS's rate while the power is 1.
        "LMS": lms_filter(u, d, num_taps=NUM_TAPS, step_size=0.4 / NUM_TAPS).weights,
        "NLMS": nlms_filter(u, d, num_taps=NUM_TAPS, step_size=0.4).weights,
        "RLS": rls_filter(u, d, num_taps=NUM_TAPS, forgetting=0.99).weights,
    }
    true = np.repeat(systems, half, axis=0)
    return {
        name: np.linalg.norm(np.asarray(w) - true, axis=1) for name, w in fits.items()
    }


def draw_tracking(path, seeds=SEEDS):
    figure, panels = plt.subplots(
        1, 2, figsize=(9, 3.8), sharey=True, layout="constrained"
    )
    for axes, level, title in (
        (panels[0], 1.0, "the system changes"),
        (panels[1], 1 / 3, "the system changes and the input falls to 1/3"),
    ):
        runs = [track(level, seed) for seed in seeds]
        for name in runs[0]:
            power = np.mean([run[name] ** 2 for run in runs], axis=0)
            curve = decibels(np.sqrt(power))
            axes.plot(curve, label=name)
            half = curve.size // 2
            print(
                f"tracking, {title}: {name} {curve[half - 100 : half].mean():.1f} dB"
                f" before, {curve[half + 500]:.1f} dB 500 samples after,"
                f" {curve[-100:].mean():.1f} dB at the end"
            )
        axes.set(title=title, xlabel="sample")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("misalignment, dB")
    panels[0].legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def impulse_misalignment(amplitude, through_system, p, seed, *, sign_error=False):
    """Root mean square misalignment in dB after impulses begin to hit the input.

    White input of unit power, 16 taps, noise at -40 dB, 6000 samples. From sample 3000
    on, each sample is hit with probability 0.002 by an impulse of +-`amplitude`, which
    reaches the system too (`through_system`) or the filter alone.
    """
    rng = np.random.default_rng(seed)
    num_samples = 6000
    system = rng.standard_normal(NUM_TAPS)
    system /= np.linalg.norm(system)
    clean = rng.standard_normal(num_samples)
    hit = (rng.random(num_samples) < 0.002) & (np.arange(num_samples) >= 3000)
    u = clean + hit * amplitude * rng.choice([-1.0, 1.0], num_samples)
    heard = u if through_system else clean
    d = np.convolve(heard, system)[:num_samples]
    d += 0.01 * rng.standard_normal(num_samples)
    # The same mean step on clean input for both norms: E|u| = 0.8 for E u^2 = 1.
    step_size = (0.02 if sign_error else 0.1) * (1.0 if p == 2 else 0.8)
    if sign_error:
        weights = sign_error_nlms(windows(u, NUM_TAPS), d, step_size, p)
    else:
        fit = nlms_filter(u, d, num_taps=NUM_TAPS, step_size=step_size, p=p)
        weights = np.asarray(fit.weights, np.float64)
    distance = np.linalg.norm(weights[3000:] - system, axis=1)
    return decibels(np.sqrt(np.mean(distance**2)))


def sign_error_nlms(x, d, step_size, p, eps=1e-3):
    """NLMS with sign(e) for e, as the loss |e| gives it."""
    w, history = np.zeros(x.shape[1]), []
    for x_t, d_t in zip(x, d, strict=True):
        divisor = eps + np.sum(np.abs(x_t) ** p)
        w = w + step_size * np.sign(d_t - x_t @ w) * x_t / divisor
        history.append(w)
    return np.array(history)


def print_impulses(seeds=SEEDS):
    print("| impulses reach | height | l2 | l1 | l2, sign of e | l1, sign of e |")
    print("| --- | --- | --- | --- | --- | --- |")
    for through_system in (True, False):
        for amplitude in (0, 10, 100, 1000):
            cells = []
            for sign_error in (False, True):
                for p in (2, 1):
                    runs = [
                        impulse_misalignment(
                            amplitude, through_system, p, seed, sign_error=sign_error
                        )
                        for seed in seeds
                    ]
                    cells.append(f"{np.mean(runs):.0f} ± {np.std(runs, ddof=1):.0f}")
            who = "filter and system" if through_system else "the filter alone"
            print(f"| {who} | {amplitude} | {' | '.join(cells)} |")


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    draw_projection(folder / "nlms_projection.png")
    draw_step_sizes(folder / "nlms_step_sizes.png")
    draw_tracking(folder / "tracking.png")
    print_impulses()


if __name__ == "__main__":
    images = pathlib.Path(__file__).parent.parent / "images"
    jax.config.update("jax_enable_x64", True)
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else images)
