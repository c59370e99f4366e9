"""Runs that diverge: the step is known, and the last good state is kept."""

import signal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from train import cli
from train.experiments import series
from train.run import loop, metrics, warn
from train.run.checkpoints import Checkpoints
from train.run_config import RunConfig
from train.training.state import LoopState
from train.training.step import FINITE_STEPS, train_step

pytestmark = pytest.mark.usefixtures("tiny_setting")


def train(*options):
    return cli.main(["--parallel", "jit", "--batch-size", "16", *options])


def spoil(monkeypatch, what, step):
    """Makes the weights or the loss of one training step infinite or NaN."""

    def spoiled(state, *given, **options):
        state, metrics = train_step(state, *given, **options)
        now = state.step == step
        if what == "weight":
            spoiled = jax.tree.map(lambda w: jnp.where(now, jnp.inf, w), state.params)
            state = state.replace(params=spoiled)
        else:
            metrics |= {"loss": jnp.where(now, jnp.nan, metrics["loss"])}
        return state, metrics

    monkeypatch.setattr("train.training.step.train_step", spoiled)


def latest_step(path):
    checkpoints = Checkpoints(path / "checkpoints")
    checkpoints.close()
    return checkpoints.latest_step


class Counted(NamedTuple):
    """Stands in for a train state."""

    step: int


class Experiment:
    """Stands in for an experiment of three steps per epoch that diverges at a step."""

    steps_per_epoch = 3

    def __init__(self, lengths, spoiled):
        self.chunk_lengths = lambda first: lengths
        self._spoiled = spoiled

    def count_finite(self, loop_state):
        return loop_state

    def train_chunk(self, loop_state, step, num_steps):
        assert loop_state.state.step == step
        step += num_steps
        before = (step - 1) // 3 * 3
        finite = max(0, min(step, self._spoiled - 1) - before)
        return LoopState(Counted(step), {"loss": 0.0, FINITE_STEPS: finite})

    def close(self):
        pass


@pytest.mark.parametrize("lengths", [[1, 1, 1], [2, 1], [3]])
@pytest.mark.parametrize(
    ("first", "step"), [(f, s) for f in range(4) for s in range(f + 1, 11)]
)
def test_the_first_step_that_diverged_is_found(monkeypatch, lengths, first, step):
    found = []
    monkeypatch.setattr(loop, "_row", lambda experiment, loop_state, step: {})
    loop.fit(
        Experiment(lengths, step),
        LoopState(Counted(first), {"loss": 0.0, FINITE_STEPS: first % 3}),
        3,
        stopped=lambda: False,
        on_epoch=lambda loop_state, row: None,
        on_divergence=found.append,
    )
    assert found == [step] * (step <= 9)


# Three steps per epoch: in the middle of an epoch, and at its end.
@pytest.mark.parametrize(
    ("what", "step", "chunk"),
    [("weight", 5, "3"), ("weight", 6, "1"), ("loss", 4, "1"), ("loss", 6, "3")],
)
def test_a_run_stops_where_it_diverges(
    tmp_path, monkeypatch, capsys, what, step, chunk
):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        spoil(patch, what, step)
        options = ("--epochs", "3", "--chunk-steps", chunk, "--run-dir", str(run))
        assert train(*options) == 3
    err = capsys.readouterr().err
    message = (
        f"the loss or a parameter is not finite after step {step}, in epoch 2 of 3"
    )
    assert f"Error: training diverged: {message}" in err
    assert "smaller --learning-rate than 0.1" in err
    assert "--normalizer log1p" in err
    assert "Its latest checkpoint is that of step 3." in err
    assert latest_step(run) == 3
    assert [row["epoch"] for row in metrics.read(run / "metrics.jsonl")] == [1]


def test_a_run_that_diverges_before_its_first_checkpoint_says_so(
    tmp_path, monkeypatch, capsys
):
    spoil(monkeypatch, "loss", 2)
    assert train("--epochs", "3", "--run-dir", str(tmp_path / "run")) == 3
    err = capsys.readouterr().err
    assert "not finite after step 2, in epoch 1 of 3" in err
    assert "It has no checkpoint yet." in err


def test_a_checkpoint_of_a_run_that_was_stopped_at_once_is_named(
    tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        # As if a signal had come before the first step.
        patch.setattr(loop, "fit", lambda experiment, loop_state, *_, **__: loop_state)
        assert train("--epochs", "3", "--run-dir", str(run)) == 128 + signal.SIGTERM
    spoil(monkeypatch, "loss", 2)
    assert train("--resume", str(run)) == 3
    assert "Its latest checkpoint is that of step 0." in capsys.readouterr().err


def test_a_diverged_run_resumes_from_its_last_good_step(tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        spoil(patch, "weight", 5)
        assert train("--epochs", "3", "--run-dir", str(run)) == 3
        assert train("--resume", str(run)) == 3  # It diverges again, bit for bit.
        assert train("--resume", str(run), "--on-divergence", "continue") == 0
    assert [row["epoch"] for row in metrics.read(run / "metrics.jsonl")] == [1, 2, 3]
    err = capsys.readouterr().err
    assert err.count("Error: training diverged") == 2
    assert err.count("Warning: training diverged") == 1


def test_a_series_keeps_a_diverged_run(tmp_path, capsys):
    command = ["compare", "--optimizers", "sgd@1e20", "--epochs", "2"]
    command += ["--batch-size", "16", "--parallel", "jit"]
    assert cli.main([*command, "--runs-dir", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "Warning: training diverged" in err
    assert "| 1/1" in out
    (path,) = tmp_path.glob("digits-*")
    assert series.metrics.read_whole(path / "metrics.jsonl", 2, None)


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_remedy_can_be_combined_with_the_run_s_options(clip_norm):
    config = RunConfig(optimizer="sgd", clip_norm=clip_norm)
    message = warn.of_divergence(config, step=3, steps_per_epoch=2)
    assert ("--polyak-factor 1" in message) == (clip_norm is None)
