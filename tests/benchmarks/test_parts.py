"""The measurements of the parts, on a tiny network."""

import math
from types import SimpleNamespace

import pytest

import models
from benchmarks.parts import smoke, steps, trace
from benchmarks.parts.smoke import Case
from benchmarks.task import Failed
from tests.train.tiny_cnn import TinyCNN
from train.benchmark.measure import Stepper
from train.benchmark.workload import Workload
from train.training import parallel

WORKLOAD = Workload("custom_cnn", (), 8, "bfloat16")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(models, "create", lambda name, **options: TinyCNN(**options))


@pytest.fixture
def case():
    return Case("case", WORKLOAD, 8, "insgd-l2", "jit")


def test_a_case_passes(case):
    found = smoke.check(case, 1)
    assert found["steps"] == 3
    assert math.isfinite(found["loss"])
    assert found["donated"]
    assert found["seconds_per_step"] > 0


def test_a_case_fails_if_the_state_is_copied(case, monkeypatch):
    monkeypatch.setattr(parallel, "_donated", lambda donate_state: ())
    with pytest.raises(Failed, match="the state was copied") as error:
        smoke.check(case, 1)
    assert error.value.result["loss"]


def test_a_case_fails_on_a_transfer_from_the_host_within_a_chunk(case, monkeypatch):
    train_chunk = smoke.Experiment.train_chunk

    def train_chunk_with_transfer(self, loop_state, step, num_steps):
        loop_state = train_chunk(self, loop_state, step, num_steps)
        # A new array from the host, as if the step were counted there.
        state = loop_state.state.replace(step=smoke.np.asarray(step + num_steps))
        return loop_state._replace(state=state)

    monkeypatch.setattr(smoke.Experiment, "train_chunk", train_chunk_with_transfer)
    with pytest.raises(Failed, match="within a chunk: .*Disallowed host-to-device"):
        smoke.check(case, 1)


def test_a_trace_is_summarized():
    def event(name, start, duration):
        return SimpleNamespace(name=name, start_ns=start, duration_ns=duration)

    compute = SimpleNamespace(
        name="Stream #7(Compute)",
        events=[event("conv", 0, 100), event("conv", 200, 100), event("add", 250, 50)],
    )
    copies = SimpleNamespace(
        name="Stream #8(MemcpyD2H)", events=[event("MemcpyD2H", 350, 50)]
    )
    modules = SimpleNamespace(name="XLA Modules", events=[event("jit", 0, 400)])
    gpu = SimpleNamespace(name="/device:GPU:0", lines=[compute, copies, modules])
    host = SimpleNamespace(name="/host:CPU", lines=[modules])
    assert trace.summarize([host, gpu]) == {
        "events": 4,
        "device_seconds": pytest.approx(3e-7),
        "copies_with_host": {"MemcpyD2H": 1, "MemcpyH2D": 0},
        "busy": 250 / 400,
        "longest": {"conv": 2e-7, "add": 5e-8, "MemcpyD2H": 5e-8},
    }
    nothing = trace.summarize([host])
    assert (nothing["events"], nothing["busy"]) == (0, None)


def test_each_optimizer_is_timed_beside_a_second_copy_of_sgd():
    names = ("sgd", "lms-newton")
    found = steps.measure_all(WORKLOAD, 8, 2, names)
    assert found["optimizers"].keys() == {*names, steps.CONTROL}
    assert not found["errors"]
    # Captures happen in every tenth step, and a profile has whole periods.
    assert found["optimizers"]["lms-newton"]["profile"]["steps"] == 10


def test_optimizers_that_fail_are_reported_and_left_out(monkeypatch):
    run_from = Stepper.run_from

    def run(self, state, period=1):
        if "Muon" in repr(state.opt_state):
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return run_from(self, state, period)

    monkeypatch.setattr(Stepper, "run_from", run)
    found = steps.measure_all(WORKLOAD, 8, 2, ("sgd", "insgd-l2", "muon"))
    assert found["errors"] == {
        "muon": "RuntimeError: RESOURCE_EXHAUSTED: out of memory"
    }
    assert found["optimizers"].keys() == {"sgd", "insgd-l2", steps.CONTROL}
    sgd, insgd = found["optimizers"]["sgd"], found["optimizers"]["insgd-l2"]
    assert insgd["over_sgd"]["of_medians"] == pytest.approx(
        insgd["seconds"] / sgd["seconds"]
    )
    assert sgd["images_per_second"] == pytest.approx(8 / sgd["seconds"])
    # Two float32 values, P and multiplier, for each of two kernels, and the step count.
    assert insgd["state_bytes"] - sgd["state_bytes"] == 4 * 2 * 2 + 4
    assert found["flops"] > 0


def test_without_sgd_there_are_no_ratios_and_no_flops(monkeypatch):
    run_from = Stepper.run_from

    def run(self, state, period=1):
        if "Power" not in repr(state.opt_state):
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return run_from(self, state, period)

    monkeypatch.setattr(Stepper, "run_from", run)
    found = steps.measure_all(WORKLOAD, 8, 2, ("sgd", "insgd-l2"))
    assert found["errors"].keys() == {"sgd"}
    assert found["optimizers"].keys() == {"insgd-l2"}
    assert found["optimizers"]["insgd-l2"]["over_sgd"] is None
    assert found["flops"] is None
