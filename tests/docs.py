"""Runs the code in the documentation as printed."""

import contextlib
import io
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def python_blocks(path):
    """The Python blocks of a document, given by its path from the root."""
    return re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)


def run_block(source, namespace):
    """Runs a block in a namespace; returns what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        # The project's own documents, whose code users are expected to run.
        exec(compile(source, "<docs>", "exec"), namespace)  # noqa: S102
    return printed.getvalue()
