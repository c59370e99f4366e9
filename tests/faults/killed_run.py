"""`python -m train` on the tiny network, in a process that kills itself.

`python -m tests.faults.killed_run SECONDS OPTION...`: so long after its first epoch.
"""

import os
import signal
import sys
import threading

import jax

import models
from tests.train.stripes import stripes
from tests.train.tiny_cnn import TinyCNN
from train import cli
from train.data import digits
from train.run.metrics import MetricsWriter


def main(seconds, *options):
    """Runs until it is killed."""
    # As in tests/conftest.py and in the fixture `tiny_runs`.
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_disable_most_optimizations", True)
    digits.load = stripes
    models.create = lambda name, **settings: TinyCNN(**settings)
    write, started = MetricsWriter.write, []

    def write_and_start_the_clock(self, row):
        write(self, row)
        if not started:
            kill = threading.Timer(
                float(seconds), os.kill, (os.getpid(), signal.SIGKILL)
            )
            kill.daemon = True
            kill.start()
            started.append(kill)

    MetricsWriter.write = write_and_start_the_clock
    return cli.main(list(options))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
