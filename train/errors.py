"""What a user can put right, and how it is said."""

import signal
import sys
from collections.abc import Callable


class UserError(Exception):
    """Shown without a traceback: names the thing, the place and the remedy."""


def report_errors(execute: Callable[[], int]) -> int:
    """Executes something; says without a traceback what a user can put right.

    Returns:
        The exit status.
    """
    try:
        return execute()
    # What the file system refuses names the place by itself.
    except (UserError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(
            f"Error: not enough memory ({error}). Use a smaller batch size, network or "
            "image.",
            file=sys.stderr,
        )
        return 2
    except RuntimeError as error:
        # JAX's type; not imported here, since that takes seconds.
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        reason = str(error).splitlines()[0]
        print(
            f"Error: not enough memory on the device ({reason}). Use a smaller batch "
            "size, network or image.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 128 + signal.SIGINT
