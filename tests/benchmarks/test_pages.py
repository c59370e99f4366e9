"""Benchmarks that pages cite: each can be imported, and a page names its command."""

import importlib
import json
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


def test_training_runs_are_not_repeated(tmp_path, monkeypatch, capsys):
    training_runs = importlib.import_module("benchmarks.pages.training_runs")
    options = ["--dataset", "digits", "--epochs", "1", "--batch-size", "512"]
    options += ["--out", str(tmp_path / "runs.json"), "--optimizers", "sgd@0.1"]
    monkeypatch.setattr(training_runs.series, "keep_compiled", lambda folder: None)
    monkeypatch.setattr("sys.argv", ["training_runs", *options])
    assert training_runs.main() == 0
    trained = []
    train = training_runs.train

    def recorded(config, dataset):
        trained.append((config.initial_learning_rate, config.seed))
        return train(config, dataset)

    monkeypatch.setattr(training_runs, "train", recorded)
    monkeypatch.setattr("sys.argv", ["x", *options, "sgd@0.2", "--seeds", "2"])
    assert training_runs.main() == 0
    assert trained == [(0.2, 0), (0.1, 1), (0.2, 1)]
    found = json.loads((tmp_path / "runs.json").read_text())
    assert found["seeds"] == {"sgd@0.1": [0, 1], "sgd@0.2": [0, 1]}
    losses = found["train_loss"]["sgd@0.2"]
    assert [len(epochs) for epochs in losses] == [1, 1]
    assert losses[0] != losses[1]
    monkeypatch.setattr("sys.argv", ["x", *options, "--epochs", "2"])
    assert training_runs.main() == 2
    assert "runs.json has runs with other options" in capsys.readouterr().err
    assert all(5 < top1 <= 100 for (top1,) in found["test_top1"]["sgd@0.2"])
