"""The memory of a step with covariances, beside one without."""

import pytest

from train.benchmark.measure import Stepper
from train.benchmark.workload import Workload


@pytest.mark.slow
def test_the_inverse_is_not_computed_amid_the_backward_pass():
    """Left to itself, XLA would do so at the peak: 1.40 times SGD's memory."""
    workload = Workload("custom_cnn", (("batch_norm", False),), 128, "float32")
    sgd, newton = (
        Stepper(workload, 32, name).memory().temporary for name in ("sgd", "lms-newton")
    )
    assert newton < 1.3 * sgd
