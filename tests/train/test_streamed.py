"""Runs on a small ImageNet that is read on demand."""

import dataclasses
import functools
import signal

import jax
import numpy as np
import pytest

import models
from train import cli
from train.data import imagenet
from train.data import loader as batches
from train.data.images import decode
from train.data.images.crops import Crops
from train.experiments.paper import presets
from train.run.experiment import Experiment, create_evaluator
from train.run_config import RunConfig
from train.training import parallel

from . import processes, tiny_imagenet
from .results import final_state, without_times
from .test_evaluate import Linear, scores
from .tiny_cnn import TinyCNN

BATCH_SIZE = 8
STEPS = 27 // BATCH_SIZE
MEAN, STD = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """ImageNet prepared from archives of a few images; the network sees 16x16 crops."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    tiny_imagenet.write_archives(tmp_path / "data", monkeypatch)
    assert cli.main(["prepare", "imagenet2012"]) == 0
    monkeypatch.setattr(imagenet, "CROPS", Crops(side=16, shorter_side=20))
    return RunConfig(dataset="imagenet2012").load_dataset()


@pytest.fixture
def train(tmp_path, prepared, monkeypatch):
    """Trains a small network in a folder of `tmp_path`; returns the status."""
    tiny = functools.partial(TinyCNN, dropout=0.2)
    monkeypatch.setattr(models, "create", lambda name, **options: tiny(**options))

    def run(*options, run_dir="run"):
        where = [] if "--resume" in options else ["--run-dir", str(tmp_path / run_dir)]
        start = ["--dataset", "imagenet2012", "--batch-size", str(BATCH_SIZE)]
        return cli.main([*start, "--parallel", "jit", *where, *options])

    return run


def assert_same_run(one, other):
    assert without_times(one) == without_times(other)
    jax.tree.map(np.testing.assert_array_equal, final_state(one), final_state(other))


@pytest.mark.parametrize("workers", ["0", pytest.param("2", marks=pytest.mark.slow)])
def test_workers_and_a_stop_do_not_change_the_results(
    train, tmp_path, monkeypatch, capsys, workers
):
    assert train("--epochs", "2", "--data-workers", "0", run_dir="whole") == 0
    assert "(27 training, 13 test images)" in capsys.readouterr().out
    assert [row["epoch"] for row in without_times(tmp_path / "whole")] == [1, 2]
    assert len({row["train_loss"] for row in without_times(tmp_path / "whole")}) == 2

    train_chunk = Experiment.train_chunk
    with monkeypatch.context() as patch:

        def stop(self, progress, step, num_steps):
            if step == 1:
                signal.raise_signal(signal.SIGINT)
            return train_chunk(self, progress, step, num_steps)

        patch.setattr(Experiment, "train_chunk", stop)
        status = train("--epochs", "2", "--data-workers", workers, run_dir="stopped")
    assert status == 128 + signal.SIGINT
    assert "saved at step 2" in capsys.readouterr().out

    resumed = tmp_path / "stopped"
    assert cli.main(["--resume", str(resumed), "--data-workers", "0"]) == 0
    assert_same_run(resumed, tmp_path / "whole")


@pytest.mark.parametrize("strategy", ["jit", "mesh", "pmap", "shard_map"])
def test_each_step_takes_its_normalized_batch(train, prepared, strategy):
    del train  # For its network.
    config = RunConfig(
        dataset="imagenet2012", batch_size=BATCH_SIZE, parallel=strategy, data_workers=0
    )
    experiment = Experiment(config, prepared)
    kernel = jax.device_get(experiment.start().state.params["Conv_0"]["kernel"])

    progress = experiment.train_chunk(experiment.start(), 0, 1)

    load = batches.TrainBatches(
        prepared.train, prepared.crops, 0, BATCH_SIZE, STEPS, np.arange(BATCH_SIZE)
    )
    inputs = (load(0).images / 255 - MEAN) / STD
    convolved = jax.lax.conv_general_dilated(
        inputs.astype(np.float32),
        kernel,
        *((2, 2), "SAME"),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    # Batch normalization sees the whole batch, on any number of devices.
    got = progress.state.batch_stats["BatchNorm_0"]["mean"]
    expected = 0.01 * np.asarray(convolved).mean((0, 1, 2))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    # It continues with the next batch, and restarts at another step.
    progress = experiment.train_chunk(progress, 1, 1)
    again = experiment.train_chunk(experiment.start(), 0, 2)
    experiment.close()
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.tree.leaves(jax.device_get(again)),
        jax.tree.leaves(jax.device_get(progress)),
    )


def test_the_steps_that_capture_are_those_of_the_run(train, prepared):
    """A chunk captures in the same steps, whether it starts the run or continues it."""
    del train  # For its network.
    config = RunConfig(
        dataset="imagenet2012",
        batch_size=BATCH_SIZE,
        parallel="jit",
        data_workers=0,
        optimizer="lms-newton",
        covariance_every=2,
    )
    experiment = Experiment(config, prepared)
    program, captures = experiment._trainer._step_program, []

    def recorded(which):
        captures.append(which)
        return program(which)

    experiment._trainer._step_program = recorded
    progress = experiment.train_chunk(experiment.start(), 0, 3)
    assert captures == [True, False, True]
    again = experiment.train_chunk(experiment.start(), 0, 1)
    again = experiment.train_chunk(again, 1, 2)
    experiment.close()
    assert captures[3:] == [True, False, True]
    jax.tree.map(
        np.testing.assert_array_equal, again.state.params, progress.state.params
    )


@pytest.mark.parametrize("strategy", ["jit", "mesh", "pmap", "shard_map"])
@pytest.mark.parametrize("batch_size", [8, 24])
def test_scores_are_means_over_all_test_images(
    prepared, monkeypatch, strategy, batch_size
):
    monkeypatch.setattr(models, "create", lambda name, **_: Linear(1000))
    config = RunConfig(
        dataset="imagenet2012",
        batch_size=batch_size,
        parallel=strategy,
        data_workers=0,
        optimizer="sgd",
    )
    experiment = Experiment(config, prepared)
    state = experiment.start().state

    got = experiment.evaluate(state)
    if strategy == "shard_map":
        devices = parallel.create(strategy)
        counted = create_evaluator(config, prepared, devices, confusion=True)
        got = counted.evaluate(state)
        assert got["confusion"].sum() == 13
        assert np.trace(got["confusion"]) == round(13 * float(got["top1"]))

    records = prepared.test.read(range(13))
    pixels = np.stack([prepared.crops.test(decode.image(one.image)) for one in records])
    inputs = ((pixels / 255 - MEAN) / STD).reshape(13, -1)
    kernel = np.asarray(state.params["Dense_0"]["kernel"], np.float64)
    labels = np.array([one.label for one in records])
    for name, expected in scores(inputs @ kernel, labels).items():
        assert float(got[name]) == pytest.approx(expected, rel=1e-5), name


def test_table_10_is_trained_and_its_run_evaluated(
    train, tmp_path, capsys, monkeypatch
):
    del train  # For its network.
    whole = presets.TABLES[10]
    options = {**whole.options, "batch_size": BATCH_SIZE}
    small = dataclasses.replace(whole, options=options, rows=whole.rows[-1:])
    monkeypatch.setitem(presets.TABLES, 10, small)
    runs = str(tmp_path / "runs")
    options = ["--epochs", "1", "--seeds", "1", "--data-workers", "0"]
    assert cli.main(["table", "10", "--runs-dir", runs, *options]) == 0
    out = capsys.readouterr().out
    assert "92.81 ± 0.04" in out
    (run,) = (tmp_path / "runs").glob("imagenet2012-resnet50-insgd-l2-*")
    (row,) = without_times(run)

    assert cli.main(["eval", str(run)]) == 0
    assert f"13 test images: loss {row['test_loss']:.4f}" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_train_like_one(prepared, tmp_path):
    """Each reads its half of every batch, with a worker; images are of full size."""
    del prepared  # It is found through an environment variable.
    options = ["--dataset", "imagenet2012", "--epochs", "1", "--optimizer", "sgd"]
    address = processes.free_address()
    together = ["--coordinator", address, "--num-processes", "2", "--process-id"]
    starts = {"two": [[*together, "0"], [*together, "1"]], "one": [[]]}
    for name, launches in starts.items():
        statuses, output = processes.finish(
            [
                ["tests.train.distributed_run", "never", *options, *launch]
                + ["--data-workers", "1", "--run-dir", str(tmp_path / name)]
                for launch in launches
            ],
            tmp_path,
        )
        assert set(statuses) == {0}, output
    ((two,), (one,)) = (without_times(tmp_path / name) for name in starts)
    # One step, and all test images: equal up to float32 rounding.
    assert two.keys() == one.keys()
    for name, value in one.items():
        assert two[name] == pytest.approx(value, rel=1e-4), name
