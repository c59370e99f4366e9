"""Times a training step of examples/char_transformer.py with each of its optimizers.

Prints the ratios of the step's wall-clock and CPU times to those of AdamW's step, with
95 % intervals, and the CPU time of tracing and compiling the step. A round takes ten
steps of each optimizer, in one of which covariances are captured.

python -m benchmarks.pages.transformer_steps [ROUNDS]
"""

import json
import sys
import time
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import char_transformer

from train.benchmark import timing

STEPS = 10


def compiled(optimizer, model, params, batch):
    """Compiles a step; returns a function that trains, and the compilation's CPU time.

    The function takes a number of rounds; each round is ten steps of this optimizer.
    """
    tx = char_transformer.make_optimizer(optimizer, 1e-3, 10**6)
    captures = optimizer not in char_transformer.PLAIN
    _, train_step = char_transformer.make_functions(model, tx, captures)
    state = params, tx.init(params)
    start = time.process_time()
    program = train_step.lower(*state, batch, 0).compile()
    seconds = time.process_time() - start

    def run(times):
        nonlocal state
        for step in range(times * STEPS):
            state = program(*state, batch, step)
        jax.block_until_ready(state)

    return run, seconds


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    rng = np.random.default_rng(0)
    size = char_transformer.BATCH, char_transformer.LENGTH + 1
    batch = rng.integers(char_transformer.VOCABULARY, size=size, dtype=np.int32)
    model = char_transformer.Transformer(4, 128)
    params = model.init(jax.random.key(0), batch[:, 1:])["params"]
    compiled("adamw", model, params, batch)  # The first call also fills JAX's caches.
    found = {
        name: compiled(name, model, params, batch) for name in char_transformer.RATES
    }
    programs = {name: run for name, (run, _) in found.items()}
    times = timing.interleave(programs, rounds, rng)
    adamw = times["adamw"]
    for name, (seconds, processor_seconds) in times.items():
        wall = timing.compare(seconds, adamw.seconds, rng)
        processor = timing.compare(processor_seconds, adamw.processor_seconds, rng)
        row = {
            "optimizer": name,
            "milliseconds": round(1e3 * float(np.median(seconds)) / STEPS, 1),
            "ratio": wall.of_medians,
            "interval": wall.interval,
            "cpu_ratio": processor.of_medians,
            "cpu_interval": processor.interval,
            "compilation_cpu_seconds": round(found[name][1], 1),
        }
        print(json.dumps(row))
    print(jax.devices()[0].device_kind, jax.__version__, file=sys.stderr)


if __name__ == "__main__":
    main()
