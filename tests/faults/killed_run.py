"""`python -m train` on the tiny network, in a process that kills itself.

`python -m tests.faults.killed_run SECONDS OPTION...` does so SECONDS after its first
epoch.
"""

import os
import signal
import sys
import threading

from tests.faults import tiny_command
from train.run.metrics import MetricsWriter


def main(seconds, *options):
    """Runs until it is killed."""
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
    return tiny_command.main(*options)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
