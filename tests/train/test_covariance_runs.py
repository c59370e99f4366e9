"""Runs whose optimizer uses the covariance of the layers' inputs."""

import jax
import numpy as np
import pytest

from train.run import metrics

from .test_cli import final_state, rows, small_digits, train  # noqa: F401  fixtures

OPTIONS = ("--optimizer", "lms-newton", "--learning-rate", "0.03")


@pytest.mark.parametrize("form", ["patch", "kronecker"])
def test_a_resumed_run_is_the_undisturbed_one(train, tmp_path, small_digits, form):  # noqa: F811
    # Three steps an epoch: what is measured every second step is carried over.
    options = (*OPTIONS, "--covariance-every", "2", "--conv-covariance", form)
    assert train("--epochs", "3", *options, run_dir="whole") == 0
    assert train("--epochs", "1", *options) == 0
    assert train("--resume", str(tmp_path / "run"), "--epochs", "3") == 0
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.tree.leaves(final_state(tmp_path / "run", small_digits)),
        jax.tree.leaves(final_state(tmp_path / "whole", small_digits)),
    )
    last = metrics.read(tmp_path / "whole" / "metrics.jsonl")[-1]
    assert last["cosines"].keys() == {"Conv_0/kernel", "Dense_0/kernel"}
    assert all(0 < cosine <= 1 for cosine in last["cosines"].values())
    assert all(number >= 1 for number in last["condition_numbers"].values())
