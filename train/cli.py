"""The command line: subcommands, options, and errors without tracebacks."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import insgd_optax
from train.benchmark.command import BenchmarkConfig, benchmark
from train.command_line import parser
from train.command_line.options import check_and_expand, value_of
from train.config import option
from train.data.tfds.prepare import PrepareConfig, prepare
from train.errors import UserError, report_errors
from train.experiments.compare import CompareConfig, compare
from train.experiments.paper.table import TableConfig, table
from train.experiments.rates.robustness import RobustnessConfig, robustness
from train.experiments.rates.sweep import SweepConfig, sweep
from train.inference.eval import EvalConfig, evaluate
from train.inference.predict import PredictConfig, predict
from train.run import folder as run_folder
from train.run.command import run
from train.run_config import FREE_ON_RESUME, RunConfig

PROGRAM = "python -m train"
# The help shows each paragraph on one line, which is not wrapped.
DESCRIPTION = """Train networks with Input Normalized SGD.

The default subcommand is `run`, which by default trains on digits within a minute.

COMMAND --help lists the options of a command. --version alone prints versions.
"""


class _Command(NamedTuple):
    config: type[Any]  # A frozen dataclass: its fields are the options.
    execute: Callable[[Any], int]  # Returns the exit status.


COMMANDS = {
    "run": _Command(RunConfig, run),
    "eval": _Command(EvalConfig, evaluate),
    "predict": _Command(PredictConfig, predict),
    "benchmark": _Command(BenchmarkConfig, benchmark),
    "prepare": _Command(PrepareConfig, prepare),
    "table": _Command(TableConfig, table),
    "compare": _Command(CompareConfig, compare),
    "sweep": _Command(SweepConfig, sweep),
    "robustness": _Command(RobustnessConfig, robustness),
}
DEFAULT = "run"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses a command line and executes it.

    Args:
        arguments: arguments without the program's name. Default: those of this process.

    Returns:
        The exit status.

    Raises:
        SystemExit: from the parser, for help and for invalid options.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments == ["--version"]:
        print(versions())
        return 0
    if not arguments or (
        arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")
    ):
        arguments.insert(0, DEFAULT)
    return report_errors(lambda: _execute(arguments))


def _execute(arguments: Sequence[str]) -> int:
    """Executes the command named by the first argument."""
    configs: dict[str, Any] = {name: each.config for name, each in COMMANDS.items()}
    arguments = check_and_expand(arguments, configs)
    command, *options = arguments
    resumed = value_of("resume", options) if command == DEFAULT else None
    if resumed is not None and not {"-h", "--help"} & set(options):
        config = _resumed(Path(resumed), options)
    else:
        config = parser.parse(
            arguments,
            configs,
            program=PROGRAM,
            description=DESCRIPTION,
            default=DEFAULT,
        )
    return COMMANDS[command].execute(config)


def versions() -> str:
    """Returns the versions of this project and of its main libraries."""
    libraries = ("jax", "flax", "optax")
    used = ", ".join(f"{name} {metadata.version(name)}" for name in libraries)
    return f"insgd_optax {insgd_optax.__version__} ({used})"


def _resumed(path: Path, arguments: Sequence[str]) -> RunConfig:
    """Returns the options of a run with the changes given on the command line.

    Raises:
        UserError: if an option that cannot change on resume differs.
    """
    # Handles both --model MODULE:NAME and --model=MODULE:NAME.
    named = {argument.rpartition("=")[2] for argument in arguments}
    recorded = run_folder.load(path, named).config
    recorded = dataclasses.replace(recorded, run_dir=None)
    config = parser.parse_options(
        arguments, RunConfig, program=f"{PROGRAM} {DEFAULT}", defaults=recorded
    )
    changed = [
        f"{option(field.name)} is {getattr(recorded, field.name)} in the run, "
        f"{getattr(config, field.name)} here"
        for field in dataclasses.fields(RunConfig)
        if field.name not in FREE_ON_RESUME
        and getattr(config, field.name) != getattr(recorded, field.name)
    ]
    if changed:
        raise UserError(
            f"The run {path} was started with other options: {'; '.join(changed)}. "
            "Omit them to resume, or start a new run without --resume."
        )
    return config
