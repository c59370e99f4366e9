"""Trains examples/char_transformer.py with other settings of the covariance.

The optimizer is Muon on whitened inputs. One setting at a time differs from the
defaults. Appends the test loss with each, a line of JSON, to OUT, and skips settings
that are there. With --steps, prints how long steps with and without a capture take,
relative to those of AdamW, with the 95 % interval.

python docs/examples/covariance_settings.py OUT
python docs/examples/covariance_settings.py --steps ROUNDS
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

import char_transformer

from train.benchmark import timing

OPTIMIZER = "muon+whitened"
SEED, STEPS = 0, 500
SETTINGS = [
    {},
    {"every": 2},
    {"every": 30},
    {"every": 100},
    {"decay": 0.5},
    {"decay": 0.99},
    {"damping": 0.1},
    {"damping": 10.0},
    {"max_rows": 256},
    {"max_dim": 128},
]
OF_CAPTURE = "every", "max_rows", "max_dim"
OF_OPTIMIZER = "decay", "damping", "max_dim"


def functions(model, setting):
    """The optimizer, its loss and its step with a setting."""
    rate = char_transformer.RATES[OPTIMIZER]
    of_optimizer = {k: v for k, v in setting.items() if k in OF_OPTIMIZER}
    tx = char_transformer.make_optimizer(OPTIMIZER, rate, STEPS, **of_optimizer)
    of_capture = {k: v for k, v in setting.items() if k in OF_CAPTURE}
    return tx, *char_transformer.make_functions(model, tx, True, **of_capture)


def train(setting) -> float:
    """The test loss after all steps."""
    length, size = char_transformer.LENGTH, char_transformer.BATCH
    train_text, test_text = char_transformer.load_text()
    starts = np.linspace(0, len(test_text) - length - 1, 256).astype(int)
    test = char_transformer.windows(test_text, starts).reshape(-1, size, length + 1)
    model = char_transformer.Transformer(4, 128)
    params = model.init(jax.random.key(SEED), test[0, :, 1:])["params"]
    tx, loss_fn, train_step = functions(model, setting)
    state = params, tx.init(params)
    rng = np.random.default_rng(SEED)
    for step in range(STEPS):
        starts = rng.integers(len(train_text) - length, size=size)
        batch = char_transformer.windows(train_text, starts)
        state = train_step(*state, batch, step)
    losses = jax.lax.map(lambda batch: loss_fn(state[0], batch)[0], test)
    return float(losses.mean())


def stepper(tx, train_step, params, batch, step):
    """Compiles a step; returns a function that takes many, all with this number."""
    state = params, tx.init(params)
    program = train_step.lower(*state, batch, step).compile()

    def run(times):
        nonlocal state
        for _ in range(times):
            state = program(*state, batch, step)
        jax.block_until_ready(state)

    return run


def time_steps(rounds) -> None:
    rng = np.random.default_rng(SEED)
    size = char_transformer.BATCH, char_transformer.LENGTH + 1
    batch = rng.integers(char_transformer.VOCABULARY, size=size, dtype=np.int32)
    model = char_transformer.Transformer(4, 128)
    params = model.init(jax.random.key(SEED), batch[:, 1:])["params"]
    adamw = char_transformer.make_optimizer("adamw", 1e-3, STEPS)
    _, train_step = char_transformer.make_functions(model, adamw, False)
    programs = {"adamw": stepper(adamw, train_step, params, batch, 0)}
    for name, setting, step in [
        ("no capture", {}, 1),
        ("capture", {}, 0),
        ("capture, max_rows 256", {"max_rows": 256}, 0),
        ("capture, max_dim 128", {"max_dim": 128}, 0),
    ]:
        tx, _, train_step = functions(model, setting)
        programs[name] = stepper(tx, train_step, params, batch, step)
    times = timing.interleave(programs, rounds, rng)
    for name, (seconds, _) in times.items():
        ratio = timing.compare(seconds, times["adamw"].seconds, rng)
        row = {"step": name, "ratio": ratio.of_medians, "interval": ratio.interval}
        print(json.dumps(row))


def main() -> None:
    if sys.argv[1] == "--steps":
        time_steps(int(sys.argv[2]))
        return
    out = Path(sys.argv[1])
    lines = out.read_text().splitlines() if out.exists() else []
    there = [json.loads(line)["setting"] for line in lines]
    for setting in SETTINGS:
        if setting not in there:
            row = {"setting": setting, "test_loss": round(train(setting), 4)}
            with out.open("a") as file:
                print(json.dumps(row), file=file)


if __name__ == "__main__":
    main()
