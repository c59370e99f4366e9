"""Times NLMS on a million samples and 256 taps against padasip.

python -m benchmarks.pages.filters
"""

import sys

import jax
import numpy as np

try:
    import padasip
except ImportError as error:
    sys.exit(f"{error}: this compares with padasip. Run: pip install padasip")

from insgd_optax import nlms_filter
from train.benchmark import timing

NUM_SAMPLES, NUM_TAPS, ROUNDS = 1_000_000, 256, 5


def ours(u, d, weight_history):
    return nlms_filter(
        u, d, num_taps=NUM_TAPS, step_size=0.5, weight_history=weight_history
    )


def theirs(u, d):
    padded = np.concatenate([np.zeros(NUM_TAPS - 1), u])
    x = np.lib.stride_tricks.sliding_window_view(padded, NUM_TAPS)[:, ::-1]
    tap_filter = padasip.filters.FilterNLMS(NUM_TAPS, mu=0.5, eps=1e-3, w="zeros")
    return tap_filter.run(d, x)


def main():
    jax.config.update("jax_enable_x64", True)
    rng = np.random.default_rng(0)
    u = rng.standard_normal(NUM_SAMPLES)
    d = np.convolve(u, rng.standard_normal(NUM_TAPS))[:NUM_SAMPLES]
    u32, d32 = u.astype(np.float32), d.astype(np.float32)
    cases = {
        "padasip, float64": lambda: theirs(u, d),
        "float64": lambda: ours(u, d, True),
        "float32": lambda: ours(u32, d32, True),
        "float64, weight_history=False": lambda: ours(u, d, False),
        "float32, weight_history=False": lambda: ours(u32, d32, False),
    }
    programs = {name: timing.repeated(run) for name, run in cases.items()}
    times = timing.interleave(programs, ROUNDS, rng)
    reference = np.median(times["padasip, float64"].seconds)
    for name, (seconds, _) in times.items():
        median = np.median(seconds)
        print(
            f"| {name} | {median:.2f} | {min(seconds):.2f} - {max(seconds):.2f} |"
            f" {reference / median:.1f} |"
        )


if __name__ == "__main__":
    main()
