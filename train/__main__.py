"""Entry point of `python -m train`."""

import io
import sys

from train import errors, interrupt

if __name__ == "__main__":
    if sys.platform == "win32":
        sys.exit(
            "python -m train needs the file locks of Linux or macOS. On Windows run it "
            "in WSL; insgd_optax, the library, works on Windows too."
        )
    interrupt.exit_at_once()
    errors.require_packages("python -m train")
    # Slow to import.
    from train.cli import main

    # Flush each line even if stdout is a pipe.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
        if sys.stdout.errors == "strict":  # Names of classes may be any Unicode.
            sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(main())
