"""Times one sample of each adaptive filter, in microseconds.

python -m benchmarks.pages.filter_family
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.pages.filters import padasip  # Exits with a hint if not installed.
from insgd_optax import affine_projection_filter, lms_filter, nlms_filter, rls_filter
from train.benchmark import timing

NUM_TAPS, ROUNDS = (16, 64, 256), 7
SECONDS = 0.2  # Approximately, of one run.

FILTERS = {
    "LMS": functools.partial(lms_filter, step_size=1e-3),
    "NLMS": functools.partial(nlms_filter, step_size=0.5),
    "affine projection, order 2": functools.partial(
        affine_projection_filter, order=2, step_size=0.5
    ),
    "affine projection, order 8": functools.partial(
        affine_projection_filter, order=8, step_size=0.5
    ),
    "RLS": functools.partial(rls_filter, forgetting=0.999),
}


def seconds(run):
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def cases(num_taps):
    """Returns compiled runs by name, each with its number of samples."""
    rng = np.random.default_rng(0)
    system = rng.standard_normal(num_taps)
    found: dict[str, tuple[Callable[[], Any], int]] = {}

    def signals(num_samples):
        u = rng.standard_normal(num_samples)
        return u, np.convolve(u, system)[:num_samples]

    def compiled(run_filter, num_samples):
        u, d = (signal.astype(np.float32) for signal in signals(num_samples))
        run = functools.partial(
            run_filter, u, d, num_taps=num_taps, weight_history=False
        )
        seconds(run)  # Compiles.
        return run

    for name, run_filter in FILTERS.items():
        trial = seconds(compiled(run_filter, 2000))
        num_samples = int(2000 * SECONDS / trial)
        found[name] = compiled(run_filter, num_samples), num_samples
    num_samples = 32_000 // num_taps  # padasip takes num_taps^3 operations a sample
    u, d = signals(num_samples)
    padded = np.concatenate([np.zeros(num_taps - 1), u])
    x = np.lib.stride_tricks.sliding_window_view(padded, num_taps)[:, ::-1]

    def padasip_rls():
        rls = padasip.filters.FilterRLS(num_taps, mu=0.999, eps=0.01, w="zeros")
        return rls.run(d, x)

    found["RLS of padasip, float64"] = padasip_rls, num_samples
    return found


def main():
    rows: dict[str, list[str]] = {}
    for num_taps in NUM_TAPS:
        runs = cases(num_taps)
        programs = {name: timing.repeated(run) for name, (run, _) in runs.items()}
        times = timing.interleave(programs, ROUNDS, np.random.default_rng(0))
        for name, (_, num_samples) in runs.items():
            micros = 1e6 * times[name].seconds / num_samples
            rows.setdefault(name, []).append(
                f"{np.median(micros):.2f} ({min(micros):.2f} - {max(micros):.2f})"
            )
    print(f"| filter | {' | '.join(f'{n} taps' for n in NUM_TAPS)} |")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
