"""Entry point of `python -m train`."""

import sys

from train import interrupt

if __name__ == "__main__":
    interrupt.exit_at_once()
    # What follows takes seconds to import.
    from train.cli import main

    # Through a pipe, too, each epoch's line is seen when it is printed.
    sys.stdout.reconfigure(line_buffering=True)
    sys.exit(main())
