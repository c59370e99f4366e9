"""User errors and how they are reported."""

import signal
import sys
from collections.abc import Callable


class UserError(Exception):
    """An error shown without a traceback; names the cause, the place and a remedy."""


def report_errors(execute: Callable[[], int]) -> int:
    """Runs a command and prints user errors without a traceback.

    Returns:
        The exit status.
    """
    try:
        return execute()
    # An OSError already names the path.
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
        if "home directory" in str(error):  # From `Path.expanduser`.
            print(
                "Error: a path begins with ~ and the name of a user who does not "
                "exist. Pass another path.",
                file=sys.stderr,
            )
            return 2
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
