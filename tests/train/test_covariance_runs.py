"""Runs whose optimizer uses the covariance of the layers' inputs."""

import jax
import numpy as np
import pytest

from train import cli
from train.run import metrics

from .results import final_state, without_times

pytestmark = pytest.mark.usefixtures("tiny_setting")


def train(*options):
    # Three steps per epoch.
    return cli.main(["--parallel", "jit", "--batch-size", "16", *options])


@pytest.mark.parametrize("form", ["patch", "kronecker"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, form):
    run, whole = tmp_path / "run", tmp_path / "whole"
    # A capture in every second step of epochs of three steps must carry over.
    options = ("--covariance-every", "2", "--conv-covariance", form)
    options += ("--optimizer", "lms-newton", "--learning-rate", "0.03")
    assert train("--epochs", "3", *options, "--run-dir", str(whole)) == 0
    assert train("--epochs", "1", *options, "--run-dir", str(run)) == 0
    assert train("--resume", str(run), "--epochs", "3") == 0
    assert without_times(run) == without_times(whole)
    jax.tree.map(np.testing.assert_array_equal, final_state(run), final_state(whole))
    last = metrics.read(whole / "metrics.jsonl")[-1]
    assert last["cosines"].keys() == {"Conv_0/kernel", "Dense_0/kernel"}
    assert all(0 < cosine <= 1 for cosine in last["cosines"].values())
    assert all(number >= 1 for number in last["condition_numbers"].values())
