"""Worker process of a series: `python -m train.experiments.worker RUNS.json ...`.

Started by `workers`. The arguments after the file are those of the command that started
it, for the records of its runs.
"""

import io
import json
import os
import signal
import sys
import threading
from pathlib import Path

from train import interrupt
from train.errors import report_errors
from train.experiments import series
from train.run_config import RunConfig


def main() -> int:
    """Completes the runs in the file given as the first argument."""
    path = Path(sys.argv.pop(1))
    watch = threading.Thread(target=stop_with_parent, args=(0,), daemon=True)
    watch.start()
    listed = json.loads(path.read_text())
    return report_errors(
        lambda: series.complete([RunConfig.from_json(values) for values in listed])
    )


def stop_with_parent(pipe: int) -> None:
    """Sends this process SIGTERM when the other end of a pipe is closed.

    The operating system closes it even if the parent is killed.

    Args:
        pipe: file descriptor of this end, which never receives data.
    """
    # Not sys.stdin, whose lock a thread must not hold when Python exits.
    os.read(pipe, 1)
    print("The command that started this worker has ended.", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    interrupt.exit_at_once()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    sys.exit(main())
