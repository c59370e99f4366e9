"""The plan lists each requested task once and estimates its time."""

import re
from pathlib import Path

import pytest

import models
from benchmarks import estimates, plan
from benchmarks.gpu import GpuConfig, gpu
from benchmarks.parts import smoke
from benchmarks.settings import FULL, MINIATURE, Settings
from train.benchmark.workload import parse
from train.training import optimizers


@pytest.mark.parametrize("sizes", [FULL, MINIATURE])
def test_every_optimizer_network_and_strategy_has_a_case(sizes):
    cases = smoke.cases(sizes)
    assert {case.optimizer for case in cases} == set(optimizers.NAMES)
    omitted = (
        {"mobilenet_v3_large", "mobilenet_v3_small"} if sizes is MINIATURE else set()
    )
    assert {case.workload.model for case in cases} == set(models.names()) - omitted
    assert {case.strategy for case in cases} == {"jit", "mesh", "pmap", "shard_map"}
    assert {case.workload.dtype for case in cases} == {"bfloat16", "float32"}
    if sizes is FULL:
        names = {case.name.rpartition("-")[0] for case in cases}
        assert len(cases) == 2 * len(names)


@pytest.mark.parametrize("miniature", [False, True])
def test_tasks_have_unique_names_and_are_ordered_by_part(miniature):
    tasks = plan.tasks(Settings(miniature, None), Path("out"))
    names = [task.name for task in tasks]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-f]-[\w.-]+", name) for name in names)
    parts = [task.part for task in tasks]
    assert parts == sorted(parts)
    assert set(parts) == set(plan.PARTS)
    some = plan.tasks(Settings(miniature, None), Path("out"), ("b", "c-*-sgd"))
    chosen = [n for n in names if n[0] == "b" or n == "c-resnet20-sgd"]
    assert [task.name for task in some] == chosen


def test_a_dry_run_prints_times_and_runs_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(estimates, "step_flops", lambda workload, side: 989e12 / 20)
    out = tmp_path / "out"
    kind = "NVIDIA H100 80GB HBM3"
    assert gpu(GpuConfig(out, only="b,d", dry_run=True, device_kind=kind)) == 0
    output = capsys.readouterr().out
    assert "b-resnet20-bfloat16-batch128-whitened" in output
    assert "e-table6" not in output
    # One second per step at 1/20 of the peak: 13 rounds of 20 steps of 6 programs.
    (row,) = (line for line in output.splitlines() if "b-resnet50" in line)
    assert f" {(13 * 20 * 6 * 1.0 + 4 * 15 + 41) / 60:.1f} " in row
    assert f"On {kind}. Estimates:" in output
    assert not out.exists()


def test_measured_step_times_replace_estimated_ones(monkeypatch):
    monkeypatch.setattr(estimates, "step_flops", lambda workload, side: 1e30)
    (task,) = (
        task
        for task in plan.tasks(Settings(False, None), Path("out"))
        if task.name == "c-resnet20-insgd-l2"
    )
    result = {"network": "resnet20", "batch_size": 128, "dtype": "bfloat16"}
    result |= {"optimizers": {"insgd-l2": {"seconds": 0.001}}}
    record = {"part": "b", "result": result}
    seconds = estimates.Estimates("cpu", [record]).seconds(task)
    assert seconds == pytest.approx(15 + 200 * 0.4 + 200 * 390 * 0.001)


def test_flops_are_proportional_to_the_batch_size():
    (workload,) = parse("custom_cnn@4", (), "float32")
    one = estimates.step_flops(workload, 8)
    (workload,) = parse("custom_cnn@8", (), "float32")
    assert 1.8 < estimates.step_flops(workload, 8) / one < 2.2


def test_invalid_options_are_refused(tmp_path):
    with pytest.raises(ValueError, match="--minutes must be above 0"):
        GpuConfig(tmp_path, minutes=0)
    for wrong in ("a,x", "b-resnet21-*", ","):
        with pytest.raises(ValueError, match="takes parts from a,b,c,d,e,f"):
            GpuConfig(tmp_path, only=wrong)
