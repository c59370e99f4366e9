"""Ctrl-C before training starts exits with one line and status 130, at any point."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETUP = """
import gc, os, signal, sys, tempfile
from train import interrupt
interrupt.exit_at_once()
"""
CTRL_C = "os.kill(os.getpid(), signal.SIGINT)"

DELETED = f"""
class Deleted:
    def __del__(self):
        {CTRL_C}
Deleted()
print('went on')
"""


def ended(arguments, **environment):
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return result.returncode, result.stdout, result.stderr


@pytest.mark.parametrize(
    "code",
    [
        f"{CTRL_C}\nprint('went on')",
        # Where Python prints an exception and continues.
        f"gc.callbacks.append(lambda *_: {CTRL_C})\ngc.collect()\nprint('went on')",
        DELETED,
        f"try:\n    {CTRL_C}\nexcept BaseException:\n    print('went on')",
    ],
)
def test_an_interrupt_is_not_swallowed(code):
    assert ended(["-c", SETUP + code]) == (130, "", "\nInterrupted.\n")


def test_temporary_folders_are_removed(tmp_path):
    code = f"with tempfile.TemporaryDirectory(dir={str(tmp_path)!r}):\n    {CTRL_C}"
    assert ended(["-c", SETUP + code])[0] == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["-m", "train"], ["-m", "train", "compare"]])
def test_an_interrupt_while_modules_load_is_not_swallowed(tmp_path, arguments):
    module = tmp_path / "jax.py"
    module.write_text(f"import os, signal\n{CTRL_C}\nprint('went on')\n")
    got = ended(arguments, PYTHONPATH=str(tmp_path))
    assert got == (130, "", "\nInterrupted.\n")


def test_on_windows_the_command_is_a_clear_error():
    code = "import runpy, sys; sys.platform = 'win32'; "
    code += "runpy.run_module('train', {}, '__main__')"
    status, _, err = ended(["-c", code])
    assert status == 1
    assert err.startswith("python -m train needs the file locks of Linux or macOS.")
    assert "Traceback" not in err
