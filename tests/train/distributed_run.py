"""`python -m train run` on the stripes and the tiny network, for several processes.

`python -m tests.train.distributed_run DIE_AFTER OPTION...`: if DIE_AFTER is an epoch,
this process kills itself in the next one, as if its machine had died; if it is a time
such as 0.5s, it does so that long after it began to train; if "never", it does not.
"""

import os
import signal
import sys
import threading

import jax

import models
from train import cli
from train.data import digits
from train.run.experiment import Experiment

from .stripes import stripes
from .tiny_cnn import TinyCNN


def main(die_after, *options):
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_disable_most_optimizations", True)
    digits.load = stripes
    models.create = lambda name, **settings: TinyCNN(**settings)
    train_chunk, started = Experiment.train_chunk, []

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def train_or_die(self, progress, step, num_steps):
        if die_after.endswith("s"):
            if not started:
                started.append(threading.Timer(float(die_after[:-1]), die))
                started[0].daemon = True
                started[0].start()
        elif divmod(step, self.steps_per_epoch) == (int(die_after), 1):
            die()
        return train_chunk(self, progress, step, num_steps)

    if die_after != "never":
        Experiment.train_chunk = train_or_die
    return cli.main(["--batch-size", "16", *options])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
