"""The start of `python -m train`: fast, with clear errors for missing packages."""

import errno
import functools
import importlib
import io
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from train import errors

ROOT = Path(__file__).parents[2]
# Each takes about as long to import as JAX.
SLOW = (
    *("orbax", "matplotlib", "tensorflow", "tensorflow_datasets", "sklearn", "scipy"),
    *("grain", "tensorboardX", "torch", "array_record", "tensorstore"),
)


def python(code):
    return subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_help_errors_and_the_first_line_of_a_run_need_no_slow_import():
    result = python(f"""
import sys
from train import cli
from train.data import registry
from train.errors import UserError

def load(*_, **__):
    loaded = sorted(set({SLOW}) & set(sys.modules))
    raise UserError(f"the first line is printed; {{loaded}} are imported.")

registry.load = load
for arguments in (["--version"], ["--help"], ["run", "--help"], ["--lr", "3"], []):
    try:
        cli.main(arguments)
    except SystemExit:
        pass
""")
    assert "Error: run has no option --lr." in result.stderr
    assert "Error: the first line is printed; [] are imported." in result.stderr
    last = result.stdout.splitlines()[-1]
    assert last == "Loading digits, compiling custom_cnn for insgd-l2."


@pytest.mark.parametrize(
    ("package", "missing", "named"),
    [
        ("train", "tyro", "tyro"),
        ("train", "PIL", "pillow"),
        ("benchmarks", "tyro", "tyro"),
    ],
)
def test_a_missing_package_is_a_one_line_error_with_the_pip_command(
    package, missing, named
):
    result = python(f"""
import runpy, sys
sys.modules[{missing!r}] = None  # An import raises ModuleNotFoundError.
sys.argv[1:] = ["--help"]
runpy.run_module({package!r}, run_name="__main__", alter_sys=True)
""")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == (
        f"Error: python -m {package} needs {named}, which is not installed. Run: "
        f"pip install 'insgd_optax[train]', or in this checkout, {ROOT}: "
        "pip install -e '.[train]'\n"
    )


LATE = [
    "grain",
    "importlib_resources",
    "sklearn",
    "tensorboardX",
    "tensorflow_datasets",
]


@pytest.mark.parametrize(
    "arguments", [["train", "--help"], ["benchmarks", "gpu", "--help"]]
)
def test_packages_for_some_data_and_options_may_be_missing(arguments):
    package, *options = arguments
    result = python(f"""
import runpy, sys
sys.modules |= dict.fromkeys({LATE})
sys.argv[1:] = {options!r}
runpy.run_module({package!r}, run_name="__main__", alter_sys=True)
""")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("module", "package"),
    [("tensorflow_datasets", "tensorflow-datasets"), ("sklearn", "scikit-learn")],
)
def test_a_package_that_is_missing_when_it_is_used_is_a_one_line_error(
    module, package, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, module, None)
    use = functools.partial(importlib.import_module, module)
    assert errors.report_errors(use) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"Error: this command needs {package}, which is not")
    assert len(err.splitlines()) == 1
    with pytest.raises(ModuleNotFoundError):  # An undeclared package is a defect.
        errors.report_errors(functools.partial(importlib.import_module, "no_such"))


def test_the_checked_packages_are_those_that_the_project_declares():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [
        re.match(r"[\w.-]+", requirement)[0]
        for requirement in (
            project["dependencies"] + project["optional-dependencies"]["train"]
        )
    ]
    assert sorted(errors.PACKAGES) == sorted(declared)
    assert errors.missing_packages() == []


@pytest.mark.parametrize("buffered", [True, False])  # False: PYTHONUNBUFFERED.
def test_a_closed_output_ends_a_command_silently(monkeypatch, capsys, buffered):
    read, write = os.pipe()
    os.close(read)
    raw = os.fdopen(write, "wb", -1 if buffered else 0)
    with io.TextIOWrapper(raw, write_through=True) as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        status = errors.report_errors(lambda: print("a line", flush=True) or 0)
        print("another")
    assert status == 128 + signal.SIGPIPE
    assert capsys.readouterr().err == ""


def test_another_broken_pipe_is_reported(capsys):
    def use():
        raise BrokenPipeError(errno.EPIPE, "Broken pipe", "worker")

    assert errors.report_errors(use) == 2
    assert "Broken pipe: 'worker'" in capsys.readouterr().err


def test_a_terminal_without_unicode_gets_escapes():
    result = subprocess.run(
        [sys.executable, "-m", "train", "table", "6", "--dry-run"],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert r"79.24 \xb1 0.39" in result.stdout
