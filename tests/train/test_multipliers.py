"""The summary of multipliers for an epoch's metrics."""

import numpy as np
import pytest

from train.training.multipliers import summarize


def test_weights_count_by_their_entries_and_the_floor_is_found():
    summary = summarize(
        {
            "a/kernel": np.float32(0.125),
            "b/kernel": np.float32(1) / np.float32(0.01),
            "c/kernel": np.array([0.25, 0.75], np.float32),  # Two stacked layers.
            "d/kernel": np.float32(99.9),
        },
        sizes={"a/kernel": 6, "b/kernel": 1, "c/kernel": 2, "d/kernel": 1},
        eps=0.01,
    )

    assert summary["at_floor"] == ["b/kernel"] and summary["weights_at_floor"] == 1
    mean = (6 * 0.125 + 100 + 2 * 0.5 + 99.9) / 10
    assert summary["mean_multiplier"] == pytest.approx(mean)


def test_one_of_several_stacked_layers_at_the_floor_is_enough():
    summary = summarize({"a": np.array([0.2, 100.0])}, sizes={"a": 10}, eps=0.01)
    assert summary["at_floor"] == ["a"]
