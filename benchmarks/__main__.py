"""Entry point of `python -m benchmarks`."""

import sys

from train.errors import require_packages

if __name__ == "__main__":
    require_packages("python -m benchmarks")
    # Imports the packages.
    from benchmarks.cli import main

    sys.exit(main())
