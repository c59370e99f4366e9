"""`python -m train table`: what is run, what is skipped and what is printed."""

import dataclasses
import json
import signal

import pytest

from train import cli
from train.experiments import results, series
from train.experiments.paper import presets
from train.run.experiment import Experiment
from train.run_config import RunConfig


@pytest.fixture
def table(tmp_path, tiny_setting, monkeypatch):
    """Runs Table 6 with two rows and three steps per epoch; returns the status."""
    whole = presets.TABLES[6]
    rows = (whole.rows[0], whole.rows[2])
    options = {**whole.options, "batch_size": 16}
    small = dataclasses.replace(whole, rows=rows, options=options)
    monkeypatch.setitem(presets.TABLES, 6, small)

    def run(*arguments, runs="runs"):
        return cli.main(
            ["table", "6", "--dataset", "digits", "--runs-dir", str(tmp_path / runs)]
            + ["--epochs", "2", "--parallel", "jit", *arguments]
        )

    return run


def written(runs):
    (path,) = runs.glob("table6-*/table.json")
    return json.loads(path.read_text()), path.with_suffix(".md").read_text()


def test_rows_are_shown_with_the_papers_and_not_run_again(
    table, tmp_path, capsys, monkeypatch
):
    assert table("--seeds", "2") == 0

    out = capsys.readouterr().out
    values, text = written(tmp_path / "runs")
    assert text in out
    for part in (
        "79.24 ± 0.39",
        "79.30 ± 0.38",
        "selected as in the paper",
        "Trained for 2 epochs instead of the paper's 200",
        "x0.2 after epochs 1",
        "2 seeds instead of the paper's 7",
        "Trained on digits instead of the paper's cifar10",
    ):
        assert part in text
    sgd, insgd = values["rows"]
    assert (sgd["optimizer"], insgd["optimizer"]) == ("sgd", "insgd-l2")
    assert sgd["measured"]["seeds"] == 2
    assert sgd["effective_rates"] == [0.1, 0.1]
    for row in values["rows"]:
        runs = [
            series.finished_metrics(
                series.run_folder.load(tmp_path / "runs" / name).config
            )
            for name in row["runs"]
        ]
        assert row["measured"] == results.accuracies(runs).to_json()
    # A second time nothing is run, and the same is printed.
    monkeypatch.setattr(series, "run", None)
    assert table("--seeds", "2") == 0
    assert text in capsys.readouterr().out
    assert written(tmp_path / "runs") == (values, text)


def test_only_selected_rows_are_run(table, tmp_path, capsys):
    assert table("--seeds", "1", "--rows", "2") == 0
    values, _ = written(tmp_path / "runs")
    assert [row["optimizer"] for row in values["rows"]] == ["insgd-l2"]
    with pytest.raises(SystemExit):
        table("--rows", "3")
    output = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "--rows of table 6 are from 1 to 2, got (3,)" in output


def test_a_stopped_table_resumes_to_the_same_results(
    table, tmp_path, capsys, monkeypatch
):
    table("--seeds", "1", runs="whole")
    expected, _ = written(tmp_path / "whole")
    train_chunk = Experiment.train_chunk
    with monkeypatch.context() as patch:

        def stop_in_the_second_run(self, progress, step, num_steps):
            sgd = self._config.optimizer == "sgd"
            if not sgd and int(progress.state.step) == 4:
                signal.raise_signal(signal.SIGINT)
            return train_chunk(self, progress, step, num_steps)

        patch.setattr(Experiment, "train_chunk", stop_in_the_second_run)
        assert table("--seeds", "1", runs="stopped") == 128 + signal.SIGINT
    out = capsys.readouterr().out
    assert "Run the same command again to resume." in out
    _, text = written(tmp_path / "stopped")
    assert text.count("not run") == 2
    assert "1/1" in text
    assert "0/1" in text

    assert table("--seeds", "1", runs="stopped") == 0

    out = capsys.readouterr().out
    assert "1 of 2 runs are finished; 1 more was started." in out
    assert "Resuming from step 5." in out
    got, _ = written(tmp_path / "stopped")
    for mine, other in zip(got["rows"], expected["rows"], strict=True):
        assert mine["measured"]["seeds"] == 1
        assert mine["runs"][0] == other["runs"][0]
        whole = tmp_path / "whole" / mine["runs"][0] / "metrics.jsonl"
        resumed = tmp_path / "stopped" / mine["runs"][0] / "metrics.jsonl"
        assert [r["test_loss"] for r in read(whole)] == [
            r["test_loss"] for r in read(resumed)
        ]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_controls_follow_the_row_of_insgd(table, tmp_path, capsys):
    assert table("--seeds", "1", "--controls") == 0
    values, text = written(tmp_path / "runs")
    assert [row["control"] for row in values["rows"]] == [
        *("", ""),
        "SGD at INSGD's effective rate",
        "scope layer",
        "normalizer log1p",
    ]
    _, insgd, sgd, layer, log1p = values["rows"]
    assert sgd["optimizer"] == "sgd"
    assert sgd["learning_rates"] == pytest.approx(insgd["effective_rates"], rel=5e-3)
    config = series.run_folder.load(tmp_path / "runs" / insgd["runs"][0]).config
    rows = series.finished_metrics(config)
    mean = sum(row["mean_multiplier"] for row in rows) / 2
    assert insgd["effective_rates"] == pytest.approx([0.1 * mean])
    assert layer["optimizer"] == log1p["optimizer"] == "insgd-l2"
    assert "scope layer" in text
    assert "-layer-" in layer["runs"][0]
    assert "-log1p-" in log1p["runs"][0]


def test_a_dry_run_runs_nothing(table, tmp_path, capsys):
    assert table("--dry-run") == 0
    assert "79.24 ± 0.39" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_table_10_needs_a_prepared_imagenet(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert cli.main(["table", "10", "--dry-run"]) == 0
    assert "92.81 ± 0.04" in capsys.readouterr().out
    assert cli.main(["table", "10", "--runs-dir", str(tmp_path / "runs")]) == 2
    assert "python -m train prepare imagenet2012" in capsys.readouterr().err


def test_accuracies_are_of_the_best_epoch_and_of_the_last():
    runs = [
        [
            {"test_top1": 0.5, "test_top5": 0.9},
            {"test_top1": 0.7, "test_top5": 0.8},
            {"test_top1": 0.6, "test_top5": 1.0},
        ],
        [{"test_top1": 0.9, "test_top5": 0.95}, {"test_top1": 0.4, "test_top5": 0.5}],
    ]
    found = results.accuracies(runs)
    assert found.seeds == 2
    assert found.best == pytest.approx((80, 14.1421), rel=1e-4)
    assert found.last == pytest.approx((50, 14.1421), rel=1e-4)
    assert found.top5 == pytest.approx((87.5, 10.6066), rel=1e-4)
    assert str(found.best) == "80.00 ± 14.14"
    assert str(results.accuracies(runs[:1]).best) == "70.00"


def test_the_same_options_are_the_same_run_wherever_it_is_computed(tmp_path):
    row = presets.TABLES[3].rows[0]
    options = presets.options(presets.TABLES[3], row)
    three = RunConfig(dataset="cifar10", parallel="jit", **options)
    row = presets.TABLES[4].rows[0]
    options = presets.options(presets.TABLES[4], row)
    four = RunConfig(dataset="cifar10", parallel="mesh", **options)
    assert series.run_path(three) == series.run_path(four)
    for change in ({"seed": 1}, {"epochs": 100}, {"momentum": 0.8}):
        other = dataclasses.replace(three, **change)
        assert series.run_path(other) != series.run_path(three)
