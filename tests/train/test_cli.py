"""`python -m train` as users see it: runs, files, resuming and errors."""

import dataclasses
import functools
import json
import re
import signal

import jax
import numpy as np
import pytest
from PIL import Image

import models
from train import cli
from train.data import digits
from train.data.images.augment import Augmentation
from train.data.types import Preprocessing, Split
from train.run import experiment, loop, metrics
from train.run import folder as run_folder
from train.run.experiment import Experiment
from train.run_config import RunConfig
from train.training import optimizers
from train.training.in_memory import InMemoryTrainer

from . import processes
from .results import edited_record, final_state, without_times
from .tiny_cnn import TinyCNN


@pytest.fixture
def small_digits(monkeypatch, small_dataset):
    """A small dataset in place of the digits: three steps per epoch."""
    monkeypatch.setattr(digits, "load", lambda: small_dataset)
    return small_dataset


@pytest.fixture
def train(tmp_path, small_digits, monkeypatch):
    """Trains a small network in a folder of `tmp_path`; returns the status."""

    def create(name, **options):
        if name != "custom_cnn":
            return make(name, **options)
        return TinyCNN(dropout=0.2, **options)

    make = models.create
    monkeypatch.setattr(models, "create", create)

    def run(*options, run_dir="run"):
        where = [] if "--resume" in options else ["--run-dir", str(tmp_path / run_dir)]
        # One of the eight devices: its programs compile fastest.
        start = ["--parallel", "jit", "--batch-size", "16"]
        return cli.main([*start, *where, *options])

    return run


@pytest.fixture
def finished(train, made_once, tmp_path):
    """Copies a run of some epochs, trained once for all tests, into `tmp_path`."""

    def copy(epochs, run_dir="run"):
        def make(path):
            assert train("--epochs", str(epochs), run_dir=path) == 0

        made_once(f"{epochs} epochs with dropout", make, tmp_path / run_dir)

    return copy


def test_a_run_writes_its_folder_and_prints_its_path(
    train, tmp_path, capsys, run_pictures
):
    assert train("--epochs", "3") == 0

    out, err = capsys.readouterr()
    run = tmp_path / "run"
    recorded = without_times(run)
    assert [row["epoch"] for row in recorded] == [1, 2, 3]
    assert [row["step"] for row in recorded] == [3, 6, 9]
    for row in recorded:
        assert 0 <= row["train_loss"] < 10
        assert 0 <= row["test_loss"] < 10
        assert row["test_top1"] * 20 == pytest.approx(round(row["test_top1"] * 20))
        assert row["test_top5"] == 1  # There are three classes.
        assert row["learning_rate"] == 0.1
        assert row["weights_at_floor"] == 0
        assert row["multipliers"].keys() == {"Conv_0/kernel", "Dense_0/kernel"}
        assert {
            name: 1 / max(np.log(power), 0.01) for name, power in row["powers"].items()
        } == pytest.approx(row["multipliers"], rel=1e-5)
        assert (
            min(row["multipliers"].values())
            < row["mean_multiplier"]
            < max(row["multipliers"].values())
        )
    assert "epoch 2/3  train loss" in out
    assert "at the floor" not in out  # No weight is.
    closing = out.splitlines()[-1]
    assert f"Test accuracy {100 * recorded[-1]['test_top1']:.2f} %" in closing
    assert str(run) in closing
    for name in ("metrics.jsonl", "test_error.png", "checkpoints", "record.json"):
        assert name in closing
        assert (run / name).exists()
    for name, width in (("test_error.png", 900), ("multipliers.png", 1650)):
        with Image.open(run / name) as image:
            assert image.size == (width, 600)
    assert json.loads((run / "record.json").read_text())["config"]["batch_size"] == 16
    assert "9/9" in err  # The progress bar.


@pytest.mark.parametrize(
    "options",
    [
        (
            *("--optimizer", "adam", "--no-batch-norm", "--tensorboard"),
            *("--label-smoothing", "0.1", "--clip-norm", "1"),
        ),
        ("--parallel", "auto", "--scope", "layer", "--normalizer", "log1p"),
        ("--dtype", "bfloat16", "--optimizer", "insgd-l1", "--schedule", "cosine"),
    ],
)
def test_runs_with_other_options_train(train, tmp_path, options):
    assert train("--epochs", "1", *options) == 0
    (row,) = without_times(tmp_path / "run")
    assert np.isfinite(row["train_loss"])
    assert ("multipliers" in row) == ("adam" not in options)
    if "layer" in options:  # Kernel, scale and bias; kernel and bias.
        assert len(row["multipliers"]) == 3 + 2
    assert (tmp_path / "run/tensorboard").exists() == ("--tensorboard" in options)


def test_the_same_seed_gives_the_same_numbers_and_another_does_not(
    train, finished, tmp_path
):
    finished(1, "a")
    train("--epochs", "1", run_dir="b")
    train("--epochs", "1", "--seed", "1", run_dir="c")
    assert without_times(tmp_path / "a") == without_times(tmp_path / "b")
    assert without_times(tmp_path / "a") != without_times(tmp_path / "c")


def test_a_lack_of_device_memory_is_a_one_line_error(train, monkeypatch, capsys):
    message = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.\n..."

    def fail(*_):
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(Experiment, "train_chunk", fail)
    assert train("--epochs", "1") == 2
    err = capsys.readouterr().err
    assert "Error: not enough memory on the device (RESOURCE_EXHAUSTED" in err
    assert "Use a smaller batch size" in err and "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_resumes_to_the_same_end_bit_for_bit(
    train, finished, tmp_path, small_digits, monkeypatch, capsys, number
):
    finished(3, "whole")

    train_chunk = Experiment.train_chunk
    with monkeypatch.context() as patch:

        def stop_at_step_5(self, progress, step, num_steps):
            if int(progress.state.step) == 4:
                signal.raise_signal(number)
            return train_chunk(self, progress, step, num_steps)

        patch.setattr(Experiment, "train_chunk", stop_at_step_5)
        status = train("--epochs", "3", run_dir="stopped")
    run = tmp_path / "stopped"
    assert status == 128 + number
    assert len(without_times(run)) == 1
    out, err = capsys.readouterr()
    assert "Stopping after the current chunk to save a checkpoint." in err
    assert f"Stopped by {number.name} and saved at step 5." in out
    assert f"python -m train --resume {run}" in out

    assert cli.main(["--resume", str(run)]) == 0

    assert "Resuming from step 5." in capsys.readouterr().out
    assert without_times(run) == without_times(tmp_path / "whole")
    times = [row["seconds"] for row in metrics.read(run / "metrics.jsonl")]
    assert [np.isnan(each) for each in times] == [False, True, False]
    expected = final_state(tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, final_state(run), expected)


@pytest.mark.parametrize(
    ("strategy", "chunk_steps", "last_step"),
    [("jit", 50, 2), ("pmap", 2, 4)],
)
def test_a_run_stopped_inside_an_epoch_resumes_in_chunks_of_another_length(
    train, tmp_path, small_digits, monkeypatch, strategy, chunk_steps, last_step
):
    """For example, from a CPU, with one step per chunk, to an accelerator."""
    options = ("--epochs", "3", "--parallel", strategy)
    train(*options, run_dir="whole")
    train_chunk = Experiment.train_chunk
    with monkeypatch.context() as patch:

        def stop(self, progress, step, num_steps):
            if step == last_step - 1:
                signal.raise_signal(signal.SIGTERM)
            return train_chunk(self, progress, step, num_steps)

        patch.setattr(Experiment, "train_chunk", stop)
        train(*options, run_dir="stopped")
    run = tmp_path / "stopped"
    monkeypatch.setattr(InMemoryTrainer, "default_chunk_steps", chunk_steps)

    assert cli.main(["--resume", str(run)]) == 0

    assert [row["step"] for row in without_times(run)] == [3, 6, 9]
    (step, got), expected = final_state(run), final_state(tmp_path / "whole")
    assert step == 9
    # A longer chunk is another program, which may round differently.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, (step, got), expected)


def test_a_chunk_that_passes_the_end_of_its_epoch_is_refused(small_digits):
    config = RunConfig(parallel="jit", batch_size=16, optimizer="sgd")
    experiment = Experiment(config, small_digits)
    with pytest.raises(ValueError, match="2 steps from step 5 pass the end.*3 steps"):
        experiment.train_chunk(None, 5, 2)


def test_a_finished_run_can_be_extended(train, finished, tmp_path, monkeypatch, capsys):
    finished(3, "whole")
    finished(1)
    capsys.readouterr()
    # Resumed without options, it only reports its result: nothing is compiled.
    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "start", None)
        assert train("--resume", str(tmp_path / "run")) == 0
    out = capsys.readouterr().out
    assert "Nothing is left to do: the run has trained for 1 epoch." in out
    assert f"--resume {tmp_path}/run --epochs N, where N is above 1." in out
    assert "after epoch 1 (best" in out
    assert train("--resume", str(tmp_path / "run"), "--epochs", "3") == 0
    assert without_times(tmp_path / "run") == without_times(tmp_path / "whole")


def test_an_extended_run_that_is_stopped_resumes_with_the_printed_command(
    train, finished, tmp_path, monkeypatch, capsys
):
    finished(3, "whole")
    train("--epochs", "1")
    run = tmp_path / "run"
    train_chunk = Experiment.train_chunk
    with monkeypatch.context() as patch:

        def stop(self, progress, step, num_steps):
            if step == 4:
                signal.raise_signal(signal.SIGTERM)
            return train_chunk(self, progress, step, num_steps)

        patch.setattr(Experiment, "train_chunk", stop)
        options = ("--epochs", "3", "--tensorboard")
        assert train("--resume", str(run), *options) == 128 + signal.SIGTERM
    assert f"Resume with: python -m train --resume {run}\n" in capsys.readouterr().out
    recorded = run_folder.load(run).config
    assert (recorded.epochs, recorded.tensorboard) == (3, True)
    assert (recorded.run_dir, recorded.resume) == (run, None)

    assert cli.main(["--resume", str(run)]) == 0
    assert without_times(run) == without_times(tmp_path / "whole")


def test_replaced_images_are_noticed(
    finished, tmp_path, monkeypatch, small_digits, capsys
):
    finished(1)
    run = tmp_path / "run"
    images = small_digits.train.images.copy()
    images[7, 0, 0, 0] ^= 1
    other = Split(images, small_digits.train.labels)
    other = dataclasses.replace(small_digits, train=other, fingerprint="")
    monkeypatch.setattr(digits, "load", lambda: other)
    for command in (["--resume", str(run), "--epochs", "2"], ["eval", str(run)]):
        capsys.readouterr()
        assert cli.main(command) == 2
        err = capsys.readouterr().err
        assert (
            f"The dataset does not match that of the run {run}: images, labels" in err
        )
    # A record of an earlier version has no fingerprint to compare.
    with edited_record(run) as record:
        del record["dataset"]["fingerprint"]
    assert cli.main(["--resume", str(run), "--epochs", "2"]) == 0
    assert "Warning: " in capsys.readouterr().err
    assert len(without_times(run)) == 2


def test_fewer_epochs_than_already_trained_are_an_error(
    train, finished, tmp_path, capsys
):
    finished(3)
    run = tmp_path / "run"
    before = (run / "record.json").read_text()
    capsys.readouterr()
    assert train("--resume", str(run), "--epochs", "2") == 2
    err = capsys.readouterr().err
    assert f"{run} has already trained for 3 epochs, more than --epochs 2" in err
    assert "Pass --epochs 3 or more" in err
    assert (run / "record.json").read_text() == before
    assert len(without_times(run)) == 3


def test_a_run_is_not_resumed_with_other_options(train, finished, tmp_path, capsys):
    finished(1)
    capsys.readouterr()
    run = tmp_path / "run"
    status = train("--resume", str(run), "--optimizer", "sgd", "--seed", "3")
    err = capsys.readouterr().err
    assert status == 2
    assert (
        "--optimizer is insgd-l2 in the run, sgd here; --seed is 0 in the run, 3 here"
        in err
    )
    assert "Omit them to resume" in err
    assert len(without_times(run)) == 1


def test_options_of_a_resumed_run_are_checked_against_its_own(train, tmp_path, capsys):
    options = ("--schedule", "steps", "--milestones", "1", "3")
    train("--epochs", "1", *options)
    run = tmp_path / "run"
    # Without --schedule, which the run has; the milestones equal its own.
    assert cli.main(["--resume", str(run), "--milestones", "1", "3"]) == 0
    capsys.readouterr()
    assert cli.main(["--resume", str(run), "--milestones", "1", "4"]) == 2
    assert "--milestones is (1, 3) in the run, (1, 4) here" in capsys.readouterr().err
    assert cli.main([f"--resume={tmp_path / 'none'}", "--milestones", "1"]) == 2
    assert "is not a run folder" in capsys.readouterr().err


def test_resuming_a_folder_that_is_not_a_run_is_an_error(train, tmp_path, capsys):
    assert train("--resume", str(tmp_path)) == 2
    assert f"Error: {tmp_path} is not a run folder" in capsys.readouterr().err


def test_a_run_stopped_before_its_first_checkpoint_starts_over(
    train, finished, tmp_path
):
    finished(1, "whole")
    finished(1)
    run = tmp_path / "run"
    for path in (run / "checkpoints").iterdir():
        path.rename(tmp_path / path.name)
    assert train("--resume", str(run)) == 0
    assert without_times(run) == without_times(tmp_path / "whole")


def test_eval_reproduces_the_accuracies_of_the_run(finished, tmp_path, capsys):
    finished(3)
    recorded = without_times(tmp_path / "run")
    best = max(recorded, key=lambda row: row["test_top1"])
    for checkpoint, row in (("latest", recorded[-1]), ("best", best)):
        capsys.readouterr()
        arguments = ["eval", str(tmp_path / "run"), "--checkpoint", checkpoint]
        assert cli.main(arguments) == 0
        out = capsys.readouterr().out
        assert f"top-1 {100 * row['test_top1']:.2f} %" in out
        assert "20 test images" in out


def test_eval_works_if_the_devices_do_not_divide_the_batch(train, tmp_path, capsys):
    train("--epochs", "1", "--batch-size", "12")
    with edited_record(tmp_path / "run") as record:
        record["config"]["parallel"] = "auto"
    assert cli.main(["eval", str(tmp_path / "run")]) == 0
    assert "20 test images" in capsys.readouterr().out


def test_layers_at_the_floor_cause_one_warning(
    train, small_digits, monkeypatch, capsys
):
    # Pixels so small that their power is below 1.
    faint = dataclasses.replace(
        small_digits, preprocessing=Preprocessing((0.3,), (10.0,), Augmentation())
    )
    monkeypatch.setattr(digits, "load", lambda: faint)
    assert train("--epochs", "2") == 0
    out, err = capsys.readouterr()
    assert "weights at the floor 1/2" in out
    assert err.count("Warning: after epoch") == 1
    assert "by 100, its largest multiplier, for: Conv_0/kernel." in err
    assert "--normalizer log1p" in err


def test_a_diverged_run_may_continue_to_its_end_with_one_warning(
    train, tmp_path, capsys
):
    options = ("--epochs", "2", "--optimizer", "sgd", "--learning-rate", "1e20")
    assert train(*options, "--on-divergence", "continue") == 0
    out, err = capsys.readouterr()
    assert "nan" in out
    assert err.count("Warning: training diverged") == 1
    assert "--learning-rate" in err
    assert (
        json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])[
            "train_loss"
        ]
        is None
    )


def test_a_run_folder_is_not_overwritten(train, finished, tmp_path, capsys):
    finished(1)
    before = without_times(tmp_path / "run")
    assert train("--epochs", "1") == 2
    assert "already exists and was left unchanged" in capsys.readouterr().err
    assert without_times(tmp_path / "run") == before


def refused(arguments, capsys):
    """The error of a command line that is refused, on one line."""
    try:
        status = cli.main(arguments)
    except SystemExit as stop:  # From the parser.
        status = stop.code
    assert status == 2
    error = capsys.readouterr().err.replace("│", " ")
    assert "Traceback" not in error
    return " ".join(error.split())


@pytest.mark.parametrize(
    ("option", "valid"),
    [
        ("--optimizer", ("sgd", "adam", "insgd-l1", "insgd-l2")),
        ("--model", ("custom_cnn",)),
        ("--scope", ("kernel", "layer")),
        ("--normalizer", ("log", "power", "log1p")),
        ("--dataset", ("digits", "folder:PATH")),
        ("--dtype", ("float32", "bfloat16")),
        ("--parallel", ("auto", "jit", "mesh", "pmap", "shard_map")),
        ("--schedule", ("constant", "steps", "cosine")),
    ],
)
def test_an_unknown_value_is_an_error_that_lists_the_valid_ones(option, valid, capsys):
    error = refused([option, "nonsense"], capsys)
    assert "nonsense" in error
    for value in valid:
        assert value in error


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--optimiser", "sgd"], "Did you mean --optimizer?"),
        (["--learning-rate", "-1"], "--learning-rate must be at least 0"),
        (["--epochs", "many"], "All options: python -m train run --help"),
        (["--optimizer", "sdg"], "unknown optimizer 'sdg': expected one of sgd, adam"),
        (["evaluate", "x"], "Available subcommands: run, eval, "),
        (["eval"], "Missing from python -m train eval"),
    ],
)
def test_an_invalid_command_line_is_an_error_with_help(arguments, expected, capsys):
    assert expected in refused(arguments, capsys)


def test_help_lists_subcommands_and_options(capsys):
    for arguments, expected in (
        (["--help"], ("run", "eval", "The default subcommand is `run`")),
        (["run", "--help"], ("--optimizer NAME", "sgd, adam,", "--resume")),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 0
        out = capsys.readouterr().out
        for word in expected:
            assert word in out


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_states_each_default_once(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")  # Each option's text on one line.
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    out = capsys.readouterr().out
    assert "None" not in out
    assert not re.search(r"Default: .*\(default: |\(default: \)", out)
    # Default numbers are still shown, and required arguments are marked.
    shown = "(required)" if command in ("eval", "predict", "prepare") else "(default: "
    assert shown in out


def test_help_and_messages_say_which_optimizers_take_an_option(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        cli.main(["run", "--help"])
    texts = re.split(r"\n\W*--", capsys.readouterr().out)
    # The texts say INSGD for all its norms, and do not mention insgd-as-released.
    names = set(optimizers.NAMES) - {"insgd-as-released"}
    for option, owners in optimizers.OPTIONS.items():
        dashed = option.replace("_", "-")
        (text,) = [t for t in texts if re.match(rf"{dashed}\b[, ]", t)]
        taking = {name for name in names if optimizers.has_option(name, option)}
        assert taking
        for said in (text, owners):
            words = set(re.findall(r"[\w+-]+", said.lower()))
            named = {
                name
                for name in names
                if re.sub(r"-l(\d|inf)$", "", name) in words
                or "+" in name
                and name[name.index("+") :] in words
            }
            assert named == taking, said


def test_help_names_the_default_command(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert "(default: run)" in out
    assert "(required)" not in out


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["--dataset", "folder:/nowhere/at/all"],
            "The image folder /nowhere/at/all does not exist",
        ),
        (["--batch-size", "49"], "is larger than the 48 training images of stripes"),
        (
            ["--parallel", "pmap", "--batch-size", "12"],
            "--batch-size 12 is not divisible by the 8 devices",
        ),
    ],
)
def test_data_that_do_not_fit_leave_no_run_folder(
    train, tmp_path, capsys, options, expected
):
    assert train(*options) == 2
    err = capsys.readouterr().err
    assert err.startswith("Error: ")
    assert expected in err
    assert not (tmp_path / "run").exists()


def test_images_too_small_for_the_network_are_an_error(image_folder, tmp_path, capsys):
    for path in image_folder.glob("*/*/*"):
        Image.open(path).resize((6, 6)).save(path)
    status = cli.main(
        ["--dataset", f"folder:{image_folder}", "--batch-size", "2"]
        + ["--parallel", "jit"]
        + ["--cache-dir", str(tmp_path / "cache"), "--runs-dir", str(tmp_path / "runs")]
    )
    assert status == 2
    err = capsys.readouterr().err
    assert f"custom_cnn on folder:{image_folder}: " in err
    assert "8x8 pixels" in err  # The network's own message follows.
    assert not (tmp_path / "runs").exists()


def test_a_run_trains_on_an_image_folder(image_folder, tmp_path, capsys):
    arguments = ["--dataset", f"folder:{image_folder}", "--batch-size", "3"]
    arguments += ["--parallel", "jit"]
    arguments += ["--cache-dir", str(tmp_path / "cache"), "--epochs", "1"]
    assert cli.main([*arguments, "--runs-dir", str(tmp_path / "runs")]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name == "images-custom_cnn-insgd-l2-lr0.1-batch3-seed0"
    assert "6 training, 2 test images" in capsys.readouterr().out


def test_a_cache_folder_that_cannot_be_written_is_named(image_folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    arguments = ["--dataset", f"folder:{image_folder}"]
    assert cli.main([*arguments, "--cache-dir", str(tmp_path / "file")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("Error: ")
    assert str(tmp_path / "file") in err


def test_an_interrupt_while_loading_ends_with_status_130(monkeypatch, tmp_path, capsys):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(digits, "load", interrupt)
    assert cli.main(["--runs-dir", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "Interrupted.\n"


@pytest.mark.slow
def test_the_default_command_learns_digits_without_a_warning(tmp_path):
    command = ["-W", "error", "-m", "train", "--runs-dir", str(tmp_path)]
    result = processes.python(*command)
    (run,) = tmp_path.iterdir()
    assert without_times(run)[-1]["test_top1"] > 0.95
    assert "Warning" not in result.stderr


@pytest.mark.parametrize("error", [TypeError, ValueError])
def test_a_defect_of_the_code_is_not_reported_as_a_user_error(
    small_digits, monkeypatch, tmp_path, error
):
    def broken(*_, **__):
        raise error("ours")

    monkeypatch.setattr(models, "create", lambda *_, **__: TinyCNN())
    monkeypatch.setattr(TinyCNN, "init", broken)
    start = ["--batch-size", "16", "--parallel", "jit", "--runs-dir", str(tmp_path)]
    with pytest.raises(error, match="ours"):
        cli.main(start)
    with pytest.raises(error, match="ours"):
        cli.main(["benchmark", "--output-dir", str(tmp_path / "b")])


def test_more_steps_than_the_counter_holds_are_refused(
    small_digits, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(experiment, "MOST_STEPS", 3 * 50)
    start = ["--batch-size", "16", "--parallel", "jit", "--runs-dir", str(tmp_path)]
    for options in (
        ["--epochs", "51"],
        ["--warmup-epochs", "51"],
        ["--schedule", "cosine", "--restart-epochs", "51"],
        ["--schedule", "steps", "--milestones", "51"],
    ):
        assert cli.main([*start, *options]) == 2
        err = capsys.readouterr().err
        assert f"{options[-2]} 51 at 3 steps per epoch exceeds" in err
        assert "Use at most 50." in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--schedule cosine", "decays only to 0.905 of its initial value"),
        ("--schedule cosine --restart-epochs 20", None),
        ("--schedule cosine --restart-epochs 10", None),
        (
            "--schedule cosine --restart-epochs 20 --warmup-epochs 5",
            "exceeds the run's 15 epochs",
        ),
        (
            "--schedule steps",
            "never drops, because the first of --milestones 79 119 159",
        ),
        ("--schedule steps --milestones 20", "never drops"),
        ("--schedule steps --milestones 19", None),
        ("--warmup-epochs 20", "rises until the end"),
        ("--warmup-epochs 19", None),
        ("--epochs 1 --warmup-epochs 1", "takes the whole run of 1 epoch, so"),
        (
            "--epochs 1 --schedule steps",
            "not before the end of the run of 1 epoch. Use",
        ),
        (
            "--epochs 2 --warmup-epochs 1 --schedule cosine",
            "exceeds the run's 1 epoch after",
        ),
        ("", None),
    ],
)
def test_a_run_too_short_for_its_schedule_causes_a_warning(
    train, monkeypatch, capsys, options, words
):
    monkeypatch.setattr(loop, "fit", lambda experiment, progress, *_, **__: progress)
    train("--epochs", "20", *options.split())
    err = capsys.readouterr().err
    assert ("Warning" in err) == (words is not None)
    assert (words or "") in err


def test_a_relative_folder_is_recorded_as_an_absolute_path(
    image_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(image_folder.parent)
    config = RunConfig(dataset="folder:images")
    assert config.dataset == f"folder:{image_folder}"
    assert config == RunConfig.from_json(config.to_json() | {"learning_rate": None})
    monkeypatch.chdir("/")
    assert RunConfig.from_json(config.to_json()).dataset == f"folder:{image_folder}"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunConfig(dataset="folder:~/x").dataset == f"folder:{tmp_path}/x"
