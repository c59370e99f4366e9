"""Benchmarks that pages cite: each starts, and its page names its command."""

import importlib
import pkgutil
from pathlib import Path

import pytest

from benchmarks import pages

NAMES = sorted(module.name for module in pkgutil.iter_modules(pages.__path__))
DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_is_cited_and_can_be_imported(name, monkeypatch):
    command = f"python -m benchmarks.pages.{name}"
    assert any(command in page.read_text() for page in DOCS.glob("*.md"))
    monkeypatch.syspath_prepend(DOCS.parent / "examples")
    assert callable(importlib.import_module(f"benchmarks.pages.{name}").main)


def test_each_filter_is_timed(monkeypatch, capsys):
    filter_family = importlib.import_module("benchmarks.pages.filter_family")
    monkeypatch.setattr(filter_family, "NUM_TAPS", (4,))
    monkeypatch.setattr(filter_family, "ROUNDS", 1)
    monkeypatch.setattr(filter_family, "SECONDS", 0.06)
    filter_family.main()
    header, *rows = capsys.readouterr().out.splitlines()
    assert header == "| filter | 4 taps |"
    names = [row.split(" | ")[0].removeprefix("| ") for row in rows]
    assert names == [*filter_family.FILTERS, "RLS of padasip, float64"]
