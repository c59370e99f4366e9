"""The memory of a step with covariances, compared with that of one without."""

import pytest

from train.benchmark.measure import Stepper
from train.benchmark.workload import Workload


@pytest.mark.slow
def test_a_step_needs_less_than_1_3_times_the_memory_of_sgd():
    """XLA by itself would invert at the peak of the backward pass: 1.40 times."""
    workload = Workload("custom_cnn", (("batch_norm", False),), 128, "float32")
    sgd, newton = (
        Stepper(workload, 32, name).memory().temporary for name in ("sgd", "lms-newton")
    )
    assert newton < 1.3 * sgd
