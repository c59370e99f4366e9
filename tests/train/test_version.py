"""`python -m train --version`."""

import re
from pathlib import Path

import jax

import insgd_optax
from train import cli

ROOT = Path(__file__).parents[2]


def test_versions_are_printed(capsys):
    assert cli.main(["--version"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"insgd_optax {insgd_optax.__version__} (jax ")
    assert f"jax {jax.__version__}," in printed


def test_the_citation_has_the_version():
    cited = re.search(
        r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE
    )
    assert cited[1] == insgd_optax.__version__
