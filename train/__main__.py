"""Entry point of `python -m train`."""

import sys

from train.cli import main

if __name__ == "__main__":
    # Through a pipe, too, each epoch's line is seen when it is printed.
    sys.stdout.reconfigure(line_buffering=True)
    sys.exit(main())
