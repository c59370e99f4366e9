"""Several processes: their start, their output, and the death of one."""

import json
import signal

import numpy as np
import pytest

from train import cli
from train.errors import UserError
from train.run.checkpoints import Checkpoints
from train.training import distributed
from train.training.distributed import Launch

from . import processes
from .results import without_times


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        [],
        # Three steps per epoch: covariances are captured in steps 0, 2, 4, 6 and 8.
        ["--optimizer", "lms-newton", "--covariance-every", "2"],
    ],
    ids=["insgd", "lms-newton"],
)
def test_a_run_whose_worker_died_resumes_to_the_uninterrupted_result(tmp_path, options):
    whole, died = tmp_path / "whole", tmp_path / "died"
    options = ["--epochs", "3", *options]
    statuses, output = processes.finish(
        processes.of_a_run(*options, "--run-dir", str(whole)), tmp_path
    )
    assert statuses == [0, 0], output
    # Only the first process writes and prints.
    assert "Test accuracy" in output[0]
    assert "epoch" not in output[1]
    assert [row["epoch"] for row in without_times(whole)] == [1, 2, 3]
    record = json.loads((whole / "record.json").read_text())
    assert len(record["environment"]["devices"]) == 4
    assert "launch" not in record["config"]

    with processes.started(
        processes.of_a_run(*options, "--run-dir", str(died), die_after=1), tmp_path
    ) as (first, second):
        assert second.wait(120) == -signal.SIGKILL
        # The first process does not continue alone.
        assert first.wait(60) == 2
    output = (tmp_path / "0.log").read_text()
    assert "Error: process 1 has ended" in output
    assert "python -m train --resume" in output
    assert "Traceback" not in output
    assert [row["epoch"] for row in without_times(died)] == [1]

    statuses, output = processes.finish(
        processes.of_a_run("--resume", str(died)), tmp_path
    )
    assert statuses == [0, 0], output
    assert "Resuming from step 3." in output[0]
    assert without_times(died) == without_times(whole)
    for path in (whole, died):
        checkpoints = Checkpoints(path / "checkpoints")
        assert checkpoints.latest_step == 9
        checkpoints.close()


@pytest.mark.slow
def test_the_others_end_when_the_first_dies(tmp_path):
    commands = processes.of_a_run(
        "--epochs", "3", "--run-dir", str(tmp_path / "run"), die_after=1, dies=0
    )
    with processes.started(commands, tmp_path) as started:
        assert started[0].wait(120) == -signal.SIGKILL
        assert started[1].wait(60) == 2
    output = (tmp_path / "1.log").read_text()
    assert "Error: process 0 has ended" in output
    assert "python -m train --resume" in output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--learning-rate", "0.2"], "--learning-rate is 0.2, not 0.1"),
        (["--seed", "3"], "--seed is 3, not 0"),
        (["--model", "resnet20"], "--model is resnet20, not custom_cnn"),
    ],
)
def test_processes_that_differ_refuse_to_start(tmp_path, option, words):
    first, second = processes.of_a_run(
        "--epochs", "3", "--run-dir", str(tmp_path / "run")
    )
    statuses, output = processes.finish([first, [*second, *option]], tmp_path)
    assert statuses == [2, 2], output
    for text in output:
        assert f"Process 1 differs from process 0: {words}" in text
        assert "Traceback" not in text
    assert not (tmp_path / "run").exists()


def test_processes_with_other_settings_of_jax_refuse_to_start(monkeypatch, x64):
    """With JAX_ENABLE_X64 in the environment of one, for example, others would hang."""
    values = {"--seed": 1}
    ours = {"versions": distributed._versions(), **distributed._settings(), **values}
    other = json.dumps(ours | {"jax_enable_x64": False}).encode()

    def gather(array):
        if not array.ndim:
            return np.array([array, len(other)])
        padded = np.zeros_like(array)
        padded[: len(other)] = np.frombuffer(other, np.uint8)
        return np.stack([array, padded])

    monkeypatch.setattr(distributed.jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed.multihost_utils, "process_allgather", gather)
    with pytest.raises(UserError, match="jax_enable_x64 is False, not True"):
        distributed.check_equal(values)


@pytest.mark.slow
def test_an_error_of_the_process_that_writes_ends_both(tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").write_text("")
    statuses, output = processes.finish(
        processes.of_a_run("--run-dir", str(taken)), tmp_path
    )
    assert statuses == [2, 2], output
    for text in output:
        assert "already exists and was left unchanged" in text
        assert "Traceback" not in text


def test_no_answer_from_the_coordinator_is_an_error(capsys):
    address = processes.free_address()
    options = ["--coordinator", address, "--num-processes", "2", "--process-id", "1"]
    assert cli.main([*options, "--connect-timeout", "1"]) == 2
    err = capsys.readouterr().err
    assert f"No answer from --coordinator {address} within 1 s" in err
    assert "raise --connect-timeout" in err


def test_no_cluster_to_detect_is_an_error(monkeypatch):
    def initialize(*args, **options):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(distributed.jax.distributed, "initialize", initialize)
    monkeypatch.setattr(distributed.jax.config, "update", lambda *args: None)
    with pytest.raises(UserError, match="found no Slurm.*Pass --coordinator"):
        distributed.start(Launch(distributed=True))


def test_one_process_needs_no_launch_options():
    distributed.start(Launch())
    assert distributed.is_first()
    assert distributed.from_first(lambda: "here") == "here"
    assert distributed.any_process(True)
    assert not distributed.any_process(False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"coordinator": "a:1"}, "add --num-processes and --process-id"),
        ({"num_processes": 2, "process_id": 0}, "add --coordinator"),
        ({"coordinator": "a"}, "must be HOST:PORT, such as node1:1234, got 'a'"),
        ({"coordinator": "a:0"}, "must be HOST:PORT"),
        ({"process_id": 2}, "--process-id must be from 0 to 1"),
        ({"num_processes": 0}, "--num-processes must be at least 1"),
        ({"connect_timeout": 0}, "--connect-timeout must be at least 1"),
    ],
)
def test_options_that_do_not_fit_together_are_an_error(options, words):
    whole = {"coordinator": "a:1", "num_processes": 2, "process_id": 0}
    given = options if words.startswith("add ") else whole | options
    with pytest.raises(ValueError, match=words):
        Launch(**given).check()


def test_the_command_line_names_the_option(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--coordinator", "a:1"])
    output = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "add --num-processes and --process-id" in output
