"""Each script of examples/ starts as its docstring says, and trains."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(monkeypatch, name, *options):
    """Runs an example as a script, in this process."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *options])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


@pytest.mark.parametrize(
    "optimizer", ["adamw", "adamw+covariance", "lms_newton", "muon"]
)
def test_char_transformer(monkeypatch, capsys, tmp_path, optimizer):
    path = tmp_path / "result.json"
    options = ("--optimizer", optimizer, "--steps", "12", "--tiny", "--json", str(path))
    run(monkeypatch, "char_transformer", *options)
    result = json.loads(path.read_text())
    assert result["test_losses"]["12"] < 4.5  # log 128 = 4.85
    assert f"{optimizer}: median step" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.stem)
def test_an_example_is_short_and_says_how_to_start_it(path):
    text = path.read_text()
    assert len(text.splitlines()) < 150
    assert re.search(rf"^    python examples/{path.name}", text, re.MULTILINE)
