"""The command line of `python -m benchmarks`."""

import sys
from collections.abc import Callable
from typing import Any

from benchmarks.gpu import GpuConfig, gpu
from benchmarks.report import ReportConfig, report
from train.command_line import parser
from train.errors import report_errors

_COMMANDS: dict[str, tuple[type[Any], Callable[[Any], int]]] = {
    "gpu": (GpuConfig, gpu),
    "report": (ReportConfig, report),
}


def main() -> int:
    """Parses the command line and executes it; returns the exit status."""
    arguments = sys.argv[1:] or ["--help"]
    config = parser.parse(
        arguments,
        {name: config for name, (config, _) in _COMMANDS.items()},
        program="python -m benchmarks",
        description=(
            "Measurements that need an accelerator; they can be stopped and resumed."
        ),
    )
    execute = _COMMANDS[arguments[0]][1]
    return report_errors(lambda: execute(config))
