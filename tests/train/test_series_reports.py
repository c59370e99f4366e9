"""Output of a series about its runs: their folders, durations and settings."""

import json
from itertools import count
from types import SimpleNamespace

import pytest

from train import cli
from train.experiments import results, series
from train.run import folder as run_folder
from train.run_config import RunConfig


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (3.4, "3 s"),
        (59, "1 min"),
        (300, "5 min"),
        (3600, "1 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations_are_rounded_and_have_units(seconds, words):
    assert series.duration(seconds) == words


def test_a_run_in_a_folder_with_its_former_name_is_found(tmp_path):
    config = RunConfig(momentum=0.5, runs_dir=tmp_path)
    path = series.run_path(config)
    assert "-momentum0.5-" in path.name
    former = path.with_name(path.name.replace("-momentum0.5", ""))
    former.mkdir()
    assert series.run_path(config) == former
    path.mkdir()
    assert series.run_path(config) == path
    plain = RunConfig(runs_dir=tmp_path)
    assert plain.former_name == plain.readable_name


def test_a_series_prints_the_remaining_runs_and_reports_all_settings(
    tiny_setting, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    options = "--batch-size 16 --epochs 1 --parallel jit --seeds 2 --tensorboard"
    command = ["compare", "--optimizers", "sgd", "--momentum", "0.5"]
    assert cli.main([*command, *options.split()]) == 0
    out = capsys.readouterr().out
    assert "Run 1 of 2 to do:\n" in out
    assert "Run 2 of 2 to do: about " in out
    assert "Loading digits, compiling custom_cnn for sgd." in out
    (path,) = (tmp_path / "runs").glob("compare-*/compare.json")
    report = json.loads(path.read_text())
    assert report["settings"]["momentum"] == 0.5
    assert report["settings"]["optimizers"] == ["sgd"]
    assert report["settings"]["runs_dir"] == "runs"
    assert "config" not in report["settings"]
    (versions,) = report["versions"]
    assert {"jax", "flax", "optax"} <= versions.keys()
    assert len(report["run_folders"]) == 2
    for name in report["run_folders"]:
        assert "momentum0.5" in name
        assert list((tmp_path / "runs" / name / "tensorboard").iterdir())


@pytest.fixture
def finished(monkeypatch):
    """Folders of finished runs. Runs finish at once, and each takes ten minutes."""
    found = []

    def run(config, lock):
        found.append(config.run_dir)
        return 0

    def finished_metrics(config):
        return [{}] if series.run_path(config) in found else None

    monkeypatch.setattr(series, "run", run)
    monkeypatch.setattr(series, "finished_metrics", finished_metrics)
    monkeypatch.setattr(series, "keep_compiled", lambda folder: None)
    monkeypatch.setattr(
        series, "time", SimpleNamespace(monotonic=count(0, 600).__next__)
    )
    return found


def test_the_time_left_leaves_out_runs_that_others_finished(
    tmp_path, monkeypatch, capsys, finished
):
    configs = [
        RunConfig(optimizer="sgd", seed=seed, runs_dir=tmp_path) for seed in range(4)
    ]
    run = series.run

    def run_while_another_process_finishes_the_last(config, lock):
        finished.append(series.run_path(configs[-1]))
        return run(config, lock)

    monkeypatch.setattr(series, "run", run_while_another_process_finishes_the_last)
    assert series.complete(configs) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "Run 1 of 4 to do:",
        "Run 2 of 4 to do: about 10 min left",  # 2 in 10 min, and 2 left.
        "Run 3 of 4 to do: about 7 min left",  # 3 in 20 min, and 1 left.
    ]


def test_a_run_that_two_rows_share_counts_once(tmp_path, monkeypatch, capsys, finished):
    options = {"optimizer": "sgd", "runs_dir": tmp_path}
    configs = [
        RunConfig(**options),
        RunConfig(**options, learning_rate=0.1),  # The default.
        RunConfig(**options, seed=1),
    ]
    assert series.complete(configs) == 0
    assert capsys.readouterr().out.splitlines() == [
        "0 of 2 runs are finished.",
        "Run 1 of 2 to do:",
        "Run 2 of 2 to do: about 10 min left",
    ]
    record = SimpleNamespace(environments=[])
    monkeypatch.setattr(run_folder, "load", lambda path, code: record)
    names = results.provenance(configs)["run_folders"]
    assert names == [path.name for path in finished] and len(names) == 2
