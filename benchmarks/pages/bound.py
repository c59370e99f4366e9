"""Times a step of INSGD with the Polyak bound against one without.

python -m benchmarks.pages.bound
"""

import jax
import numpy as np

from train.benchmark import timing
from train.benchmark.measure import Stepper
from train.benchmark.workload import Workload

ROUNDS = 40


def main() -> None:
    workload = Workload("custom_cnn", (), 128, "float32")
    free, bounded = (
        Stepper(workload, 32, "insgd-l2", polyak_factor)
        for polyak_factor in (None, 0.3)
    )
    rng = np.random.default_rng(0)
    programs = {
        "free": free.run_from(free.state),
        "bounded": bounded.run_from(bounded.state),
    }
    times = timing.interleave(programs, ROUNDS, rng)
    for kind in ("seconds", "processor_seconds"):
        ratio = timing.compare(
            getattr(times["bounded"], kind), getattr(times["free"], kind), rng
        )
        low, high = ratio.interval
        print(f"{kind}: {ratio.of_medians:.3f} (95 %: {low:.3f} to {high:.3f})")
    memory = bounded.memory().temporary / free.memory().temporary
    print(f"temporary memory: {memory:.4f}")
    print(jax.devices()[0].device_kind, jax.__version__)


if __name__ == "__main__":
    main()
