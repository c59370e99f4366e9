"""Times NLMS on a million samples and 256 taps against padasip.

python -m benchmarks.pages.filters
"""

import statistics
import sys
import time

import jax
import numpy as np

try:
    import padasip
except ImportError as error:
    sys.exit(f"{error}: this compares with padasip. Run: pip install padasip")

from insgd_optax import nlms_filter

NUM_SAMPLES, NUM_TAPS, ROUNDS = 1_000_000, 256, 5


def ours(u, d, weight_history):
    fit = nlms_filter(
        u, d, num_taps=NUM_TAPS, step_size=0.5, weight_history=weight_history
    )
    return jax.block_until_ready(fit)


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
    for name, run in cases.items():
        if "padasip" not in name:
            run()  # Compiles.
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(ROUNDS):  # Interleaved: the machine's load hits all alike.
        for name, run in cases.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    reference = statistics.median(times["padasip, float64"])
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(
            f"| {name} | {median:.2f} | {min(seconds):.2f} - {max(seconds):.2f} |"
            f" {reference / median:.1f} |"
        )


if __name__ == "__main__":
    main()
