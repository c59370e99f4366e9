"""docs/online_learning.md: its script, on a short stream, and its picture."""

import numpy as np
import pytest

from tests.insgd_optax import docs_examples
from tests.insgd_optax.docs_examples import DOCS


@pytest.fixture(scope="module")
def example():
    return docs_examples.load("online_learning")


def test_the_scale_drifts_by_a_factor_of_100_and_back(example):
    scales = example.scales(1001)
    assert scales[0] == pytest.approx(0.1)
    assert scales.max() == pytest.approx(10, rel=1e-4)
    assert scales[-1] == pytest.approx(0.1, rel=1e-3)


def test_input_normalization_tracks_where_sgd_does_not(example):
    model = example.TASKS["linear neuron"]
    mean = {}
    for name in ("SGD", "INSGD, log", "INSGD, power"):
        _, errors = example.best(
            model, example.OPTIMIZERS[name], num_steps=1000, seeds=[0]
        )
        mean[name] = np.mean(errors)
    assert 2 * mean["INSGD, power"] < mean["INSGD, log"] < 0.5 * mean["SGD"]


def test_the_picture_is_on_the_page():
    page = (DOCS / "online_learning.md").read_text()
    assert "(images/online_learning.png)" in page
    assert (DOCS / "images/online_learning.png").exists()
