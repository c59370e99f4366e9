"""`python -m train` on the tiny network, in a process of its own."""

import sys

import jax

import models
from tests.train.stripes import stripes
from tests.train.tiny_cnn import TinyCNN
from train import cli
from train.data import digits


def main(*options):
    """Executes a command line."""
    # As in tests/conftest.py and in the fixture `tiny_runs`.
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_disable_most_optimizations", True)
    digits.load = stripes
    models.create = lambda name, **settings: TinyCNN(**settings)
    return cli.main(list(options))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
