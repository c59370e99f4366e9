"""Entry point of `python -m train`."""

import io
import sys

from train import interrupt

if __name__ == "__main__":
    if sys.platform == "win32":
        sys.exit(
            "python -m train needs the file locks of Linux or macOS. On Windows run it "
            "in WSL; insgd_optax, the library, works on Windows too."
        )
    interrupt.exit_at_once()
    # What follows takes seconds to import.
    from train.cli import main

    # Through a pipe, too, each epoch's line is seen when it is printed.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    sys.exit(main())
