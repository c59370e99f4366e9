"""`compare` and `sweep`: runs, tables, pictures, and their values."""

import dataclasses
import inspect
import json
import signal

import numpy as np
import pytest
from PIL import Image

import insgd_optax
from train import cli
from train.data.types import Split
from train.experiments import series, variants
from train.experiments.rates.points import Point, usable_range
from train.experiments.rates.sweep import SweepConfig
from train.experiments.results import MeanStd
from train.run import folder as run_folder
from train.run import plots
from train.run.experiment import Experiment
from train.run_config import RunConfig

from .results import edited_record
from .tiny_cnn import TinyCNN


@pytest.fixture
def train(tmp_path, tiny_setting):
    """Runs a command on a tiny network and data; returns the status."""

    def run(*arguments, runs_dir=tmp_path, parallel="jit"):
        return cli.main(
            [*arguments, "--batch-size", "16", "--epochs", "2"]
            + ["--runs-dir", str(runs_dir), "--parallel", parallel]
        )

    return run


def test_compare_draws_a_line_for_each_optimizer(train, tmp_path, capsys, monkeypatch):
    drawn = []
    draw = plots.plot_test_error

    def spy(runs, path, *control_of):
        if path.parent.name.startswith("compare-"):
            drawn.append(runs)
        draw(runs, path, *control_of)

    monkeypatch.setattr(plots, "plot_test_error", spy)
    command = ("compare", "--optimizers", "sgd", "insgd-l2+log1p@0.3", "--seeds", "2")
    assert train(*command) == 0

    (folder,) = tmp_path.glob("compare-*")
    with Image.open(folder / "test_error.png") as image:
        assert image.size == (900, 600)
    report = json.loads((folder / "compare.json").read_text())
    assert report["commits"] and report["devices"] == ["cpu"]
    values = report["optimizers"]
    assert list(values) == ["sgd", "insgd-l2+log1p@0.3"]
    (runs,) = drawn
    assert [len(seeds) for seeds in runs.values()] == [2, 2]
    # All with their learning rate, because one is given a learning rate.
    assert list(runs) == ["sgd@0.1", "insgd-l2+log1p@0.3"]
    for text, seeds in zip(values, runs.values(), strict=True):
        last = [100 * rows[-1]["test_top1"] for rows in seeds]
        assert values[text]["last"]["mean"] == pytest.approx(np.mean(last))
        assert [curve[-1] for curve in report["test_top1"][text]] == last
        assert len(report["test_top1"][text][0]) == len(seeds[0])
        assert ("multipliers" in seeds[0][0]) == text.startswith("insgd")
    out = capsys.readouterr().out
    assert "insgd-l2+log1p@0.3 | 0.3 " in out
    # The second time, nothing is run.
    monkeypatch.setattr(series, "run", None)
    assert train(*command) == 0
    assert "4 of 4 runs are finished." in capsys.readouterr().out


COMPARE = ("compare", "--optimizers", "sgd")


@pytest.fixture
def compared(train, made_once, tmp_path, monkeypatch, capsys):
    """The folder of the only run of a finished series; no other run can start."""

    def make(path):
        assert train(*COMPARE, runs_dir=path) == 0

    made_once("compared", make, tmp_path)
    monkeypatch.setattr(series, "run", None)
    (path,) = tmp_path.glob("digits-*")
    capsys.readouterr()
    return path


def change_record(path, part, **values):
    with edited_record(path) as record:
        record[part].update(values)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"momentum": 0.8},
            "--momentum was 0.8, is 0.9",
        ),  # As if this had been the default.
        ({"weight_decay": 1e-3}, "--weight-decay was 0.001, is 0.0005"),
        ({"optimizer": "adam"}, "--optimizer was adam, is sgd"),
        ({"seed": 7}, "--seed was 7, is 0"),
    ],
)
def test_a_run_with_other_options_is_not_reused(
    train, compared, capsys, options, expected
):
    change_record(compared, "config", **options)
    assert train(*COMPARE) == 2
    err = capsys.readouterr().err
    assert f"The run {compared} was started with other options: {expected}" in err
    assert "Move the folder away" in err
    # Nor is a run that is unfinished.
    (compared / "metrics.jsonl").unlink()
    assert train(*COMPARE) == 2
    assert expected in capsys.readouterr().err


def test_a_run_with_other_dropout_masks_is_not_reused(train, compared, capsys):
    assert train(*COMPARE, parallel="auto") == 0  # Equal except in the last bits.
    change_record(compared, "environment", parallel="shard_map")
    assert train(*COMPARE) == 2
    assert "--parallel was shard_map, is jit, which" in capsys.readouterr().err
    config = RunConfig(optimizer="sgd", runs_dir=compared.parent)
    mapped = dataclasses.replace(config, parallel="shard_map")
    assert series.run_path(config) != series.run_path(mapped)


@pytest.mark.parametrize("damage", ["missing", "{}", "half"])
def test_a_run_without_its_record_is_not_reused(train, compared, capsys, damage):
    record = compared / "record.json"
    if damage == "missing":
        record.unlink()
    else:
        record.write_text(record.read_text()[:200] if damage == "half" else damage)
    assert train(*COMPARE) == 2
    assert str(compared) in capsys.readouterr().err


def test_a_run_on_other_images_is_not_reused(
    train, compared, small_dataset, monkeypatch, capsys
):
    labels = np.roll(small_dataset.train.labels, 1)
    other = dataclasses.replace(
        small_dataset, train=Split(small_dataset.train.images, labels), fingerprint=""
    )
    with monkeypatch.context() as patch:
        patch.setattr("train.data.digits.load", lambda: other)
        assert train(*COMPARE) == 2
        err = capsys.readouterr().err
        assert (
            f"The dataset does not match that of the run {compared}: images, labels"
            in err
        )
        assert "Move the folder away" in err
    # A run of an earlier version is reused, with a warning.
    with edited_record(compared) as record:
        del record["dataset"]["fingerprint"]
    assert train(*COMPARE) == 0
    assert (
        "Warning: these runs were started by an earlier version"
        in capsys.readouterr().err
    )


def test_incomplete_metrics_are_not_reused(train, compared, monkeypatch, capsys):
    lines = (compared / "metrics.jsonl").read_text().splitlines()
    (compared / "metrics.jsonl").write_text(lines[1] + "\n")
    monkeypatch.setattr(series, "run", lambda *_: 0)  # Nothing is left to do.
    assert train(*COMPARE) == 2
    assert "its metrics are incomplete" in capsys.readouterr().err


def test_only_the_first_epochs_of_an_extended_run_count(train, compared, capsys):
    rows = (compared / "metrics.jsonl").read_text()
    longer = json.loads(rows.splitlines()[-1]) | {"epoch": 3, "test_top1": 0.0}
    (compared / "metrics.jsonl").write_text(rows + json.dumps(longer) + "\n")
    config = run_folder.load(compared).config
    change_record(compared, "config", epochs=3)
    config = dataclasses.replace(config, run_dir=None)
    assert [row["epoch"] for row in series.finished_metrics(config)] == [1, 2]
    assert train(*COMPARE) == 0


def test_a_relative_folder_is_another_run_in_another_directory(tmp_path, monkeypatch):
    places = set()
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        config = RunConfig(dataset="folder:images", runs_dir=tmp_path)
        places.add(series.run_path(config))
    absolute = dataclasses.replace(config, dataset=f"folder:{tmp_path}/there/images")
    assert len(places) == 2
    assert series.run_path(absolute) in places


def test_a_run_with_skipped_images_is_reused_only_with_the_option(
    tmp_path, image_folder, monkeypatch, capsys
):
    monkeypatch.setattr("models.create", lambda name, **options: TinyCNN(**options))
    (image_folder / "train/cat/1.png").write_bytes(b"no image")
    command = [*COMPARE, "--dataset", f"folder:{image_folder}", "--epochs", "1"]
    command += ["--batch-size", "4", "--parallel", "jit"]
    command += ["--runs-dir", str(tmp_path / "runs")]
    command += ["--cache-dir", str(tmp_path / "cache")]
    assert cli.main([*command, "--skip-corrupt-images"]) == 0
    assert cli.main(command) == 2
    assert "1 corrupt image: " in capsys.readouterr().err


def test_a_stop_in_the_last_step_of_a_run_ends_the_series(
    train, tmp_path, capsys, monkeypatch
):
    train_chunk = Experiment.train_chunk

    def stop_at_the_end(self, progress, *given):
        if int(progress.state.step) == 5:
            signal.raise_signal(signal.SIGINT)
        return train_chunk(self, progress, *given)

    monkeypatch.setattr(Experiment, "train_chunk", stop_at_the_end)
    assert train("compare", "--optimizers", "sgd", "adam") == 128 + signal.SIGINT
    (path,) = tmp_path.glob("digits-*")
    assert len(series.metrics.read(path / "metrics.jsonl")) == 2
    out = capsys.readouterr().out
    assert "Test accuracy" in out
    assert "Run the same command again to resume." in out


def test_controls_follow_the_row_of_insgd(train, tmp_path, capsys):
    command = ("compare", "--optimizers", "sgd", "insgd-l2+layer@0.3", "--controls")
    assert train(*command) == 0

    (folder,) = tmp_path.glob("compare-*")
    report = json.loads((folder / "compare.json").read_text())
    assert report["commits"] and report["devices"] == ["cpu"]
    values = report["optimizers"]
    # There is no control with scope layer, which the row itself has.
    same_rate = "insgd-l2+layer@0.3: SGD at INSGD's effective rate"
    log1p = "insgd-l2+layer@0.3: normalizer log1p"
    assert list(values) == ["sgd", "insgd-l2+layer@0.3", same_rate, log1p]
    (rows,) = [
        series.metrics.read(path / "metrics.jsonl")
        for path in tmp_path.glob("*insgd-l2-lr0.3-layer-batch*")
    ]
    rate = 0.3 * np.mean([row["mean_multiplier"] for row in rows])
    out = capsys.readouterr().out
    assert "| sgd@0.1 " in out
    (line,) = [line for line in out.splitlines() if same_rate in line]
    assert float(line.split("|")[2]) == pytest.approx(rate, rel=5e-3)
    (path,) = tmp_path.glob("*insgd-l2-lr0.3-layer-log1p-*")
    (last,) = series.metrics.read(path / "metrics.jsonl")[-1:]
    assert values[log1p]["last"]["mean"] == pytest.approx(100 * last["test_top1"])


def test_a_control_is_drawn_dashed_in_the_color_of_its_row(tmp_path, monkeypatch):
    figures = []
    make = plots.create_figure
    monkeypatch.setattr(
        plots,
        "create_figure",
        lambda *given, **o: figures.append(make(*given, **o)) or figures[-1],
    )
    rows = [{"epoch": epoch, "test_top1": 0.2 * epoch} for epoch in (1, 2)]
    names = ["sgd", "a", "a: x", "a: y", "b", "b: x"]
    control_of = {"a: x": "a", "a: y": "a", "b: x": "b"}
    plots.plot_test_error(
        {name: [rows] for name in names}, tmp_path / "p.png", control_of
    )
    ((figure, (axes,)),) = figures
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert [line.get_linestyle() for line in lines.values()] == [
        *("-", "-", "--", ":", "-", "--")
    ]
    colors = {name: line.get_color() for name, line in lines.items()}
    assert colors["a"] == colors["a: x"] == colors["a: y"]
    assert colors["b"] == colors["b: x"]
    assert len(set(colors.values())) == 3
    # This many names are beside the panel, and none is cut off.
    legend = axes.get_legend().get_window_extent()
    assert axes.get_window_extent().x1 < legend.x0
    assert legend.x1 < figure.get_window_extent().x1


def test_sweep_shows_learning_rates_and_effective_rates(train, tmp_path, capsys):
    rates = ("--learning-rates", "0.01", "0.1")
    assert train("sweep", "--optimizers", "sgd", "insgd-l2", *rates) == 0

    (folder,) = tmp_path.glob("sweep-*")
    with Image.open(folder / "sweep.png") as image:
        assert image.size == (1350, 600)
    report = json.loads((folder / "sweep.json").read_text())
    assert report["commits"] and report["devices"] == ["cpu"]
    for text, points in report["points"].items():
        assert [point["learning_rate"] for point in points] == [0.01, 0.1]
        for point in points:
            taken = point["effective_rate"] / point["learning_rate"]
            assert (taken == 1) if text == "sgd" else (0 < taken < 1)
    out = capsys.readouterr().out
    assert "Usable rate x multiplier" in out
    assert (folder / "sweep.md").read_text() in out


def points(*accuracies):
    return [
        Point(10.0**number, 10.0**number / 8, MeanStd(accuracy, None), 1)
        for number, accuracy in enumerate(accuracies)
    ]


def test_a_sweep_needs_no_default_learning_rate():
    config = SweepConfig(optimizers=("optax:lion",), learning_rates=(1e-4,))
    (run,) = config.runs("optax:lion", 1e-4)
    assert run.initial_learning_rate == 1e-4


@pytest.mark.parametrize(
    ("accuracies", "low", "high"),
    [
        ((10, 56, 60, 57, 20), 10, 1000),
        ((60, 40, 58), 1, 1),  # Beyond a gap, another range begins.
        ((55, 54.9, 60), 100, 100),
        ((60,), 1, 1),
    ],
)
def test_the_usable_range_is_the_one_around_the_best_rate(accuracies, low, high):
    found = usable_range(points(*accuracies)[::-1])
    assert (found.low.learning_rate, found.high.learning_rate) == (low, high)
    assert found.factor == found.effective_factor == high / low
    assert found.best.accuracy.mean == 60


def test_a_variant_changes_the_options_that_it_names():
    setting = RunConfig(momentum=0.5, scope="kernel")
    config = variants.parse("insgd-l1.5+layer+log1p@0.25").config(setting, seed=3)
    assert config == RunConfig(
        momentum=0.5,
        scope="layer",
        normalizer="log1p",
        optimizer="insgd-l1.5",
        learning_rate=0.25,
        seed=3,
    )
    config = variants.parse("lms-newton+kron+polyak0.5").config(setting, seed=0)
    assert config.conv_covariance == "kronecker"
    assert config.polyak_factor == 0.5
    bounded = inspect.signature(insgd_optax.clip_by_polyak).parameters["factor"]
    assert variants.parse("sgd+polyak").changes == {"polyak_factor": bounded.default}
    for name in ("adamw+cov", "muon+whitened"):
        variant = variants.parse(f"{name}+kron@0.01")
        assert variant.optimizer == name
        assert variant.changes == {"conv_covariance": "kronecker"}
    assert variants.parse("adam").config(setting, 0).initial_learning_rate == 0.001
    assert variants.parse("sgd").config(setting, 0, 0.7).learning_rate == 0.7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizers", "sdg"], "unknown optimizer 'sdg'"),
        (["--optimizers", "sgd+layer"], "INSGD accepts layer, kernel"),
        (
            ["--optimizers", "insgd-l2+l"],
            "'insgd-l2+l' is not a valid optimizer. Expected NAME",
        ),
        (["--optimizers", "sgd@fast"], "the learning rate after @ must"),
        (
            ["--optimizers", "sgd@-1"],
            "'sgd@-1': the learning rate after @ must be positive",
        ),
        (["--optimizers", "sgd@nan"], "'sgd@nan': the learning rate after @ must"),
        (["--optimizers", "sgd", "sgd"], "contains a duplicate: sgd sgd"),
        (["--seeds", "0"], "--seeds must be from 1"),
    ],
)
def test_invalid_options_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        cli.main(["compare", *arguments])
    out = "".join(capsys.readouterr())
    assert message in " ".join(out.replace("│", " ").split())


def test_sweep_takes_learning_rates_only_from_their_own_option(capsys):
    with pytest.raises(SystemExit):
        cli.main(["sweep", "--optimizers", "sgd@0.1"])
    out = "".join(capsys.readouterr())
    output = " ".join(out.replace("│", " ").split())
    assert "pass learning rates to --learning-rates" in output


def test_multipliers_and_a_run_without_metrics_can_be_drawn(tmp_path):
    rows = [
        {
            "epoch": epoch,
            "mean_multiplier": 0.2,
            "multipliers": {f"Conv_{n}/kernel": 0.1 * epoch + n for n in range(12)},
            "powers": {f"Conv_{n}/kernel": 10.0 * epoch + n for n in range(12)},
        }
        for epoch in (1, 2)
    ]
    plots.plot_multipliers(rows, tmp_path / "multipliers.png")
    plots.plot_test_error({"sgd": [[]]}, tmp_path / "empty.png")
    for name in ("multipliers.png", "empty.png"):
        assert (tmp_path / name).stat().st_size > 1000
