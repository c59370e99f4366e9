"""Trains examples/char_transformer.py with other settings of the covariance.

The optimizer is Muon on whitened inputs. One setting at a time differs from the
defaults. For each, a line of JSON with the test loss is appended to OUT; settings that
are already in OUT are skipped.

python docs/examples/covariance_settings.py OUT
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))

import char_transformer

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


def train(setting, optimizer="muon+whitened", steps=500, tiny=False):
    """The test loss after all steps."""
    args = argparse.Namespace(optimizer=optimizer, steps=steps, tiny=tiny, seed=0)
    args.learning_rate = char_transformer.RATES[optimizer]
    of_optimizer = {k: v for k, v in setting.items() if k in OF_OPTIMIZER}
    of_capture = {k: v for k, v in setting.items() if k in OF_CAPTURE}
    return char_transformer.train(args, of_optimizer, of_capture)[steps]


def main() -> None:
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
