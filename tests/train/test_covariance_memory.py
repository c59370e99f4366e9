"""The memory of a step with covariances, compared with that of one without."""

import pytest

from . import processes

_PROGRAM = """
from train.benchmark.measure import Stepper
from train.benchmark.workload import Workload

workload = Workload("custom_cnn", (("batch_norm", False),), 128, "float32")
for name in ("sgd", "lms-newton"):
    print(Stepper(workload, 32, name).memory().temporary)
"""


@pytest.mark.slow
def test_a_step_needs_less_than_1_25_times_the_memory_of_sgd(monkeypatch):
    """XLA by itself would invert at the peak of the backward pass: 1.44 times."""
    monkeypatch.setenv("XLA_FLAGS", "")  # In a new process, all optimizations.
    sgd, newton = map(int, processes.python("-c", _PROGRAM).stdout.split())
    assert newton < 1.25 * sgd
