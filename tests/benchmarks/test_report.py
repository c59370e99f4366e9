"""The report shows the results of every part, and the tasks that have none."""

import json
import math

import numpy as np
import pytest

from benchmarks import report
from benchmarks.gpu import GpuConfig, gpu
from benchmarks.parts import experiments
from benchmarks.report import ReportConfig
from train import strict_json
from train.errors import UserError

ENVIRONMENT = {
    "devices": ["NVIDIA H100 80GB HBM3"],
    "commit": "abc",
    "python": "3.12.3",
    "versions": {"jax": "0.11.2", "insgd_optax": None},
    "settings": {"miniature": False, "dataset": None},
}
RATIO = {"of_medians": 1.25, "interval": [1.0, 1.5], "paired": 1.2, "quartiles": [1, 2]}
NETWORK = {"network": "resnet20", "batch_size": 128, "dtype": "bfloat16"}


def record(name, result, status="finished", reason=None):
    return {
        "name": name,
        "part": name[0],
        "title": name,
        "status": status,
        "reason": reason,
        "result": result,
        "seconds": 1.0,
        "date": "2026-01-01T00:00:00+00:00",
        "environment": ENVIRONMENT,
    }


def step(seconds, state_bytes, over_sgd):
    memory = {"temporary": 3 * 2**20, "peak": None}
    found = {"seconds": seconds, "images_per_second": 128 / seconds}
    found |= {"over_sgd": over_sgd, "memory": memory, "state_bytes": state_bytes}
    profile = {"steps": 20, "events": 160, "device_seconds": 0.03}
    return found | {"utilization": 0.125, "profile": profile}


TRAINED = {
    "optimizer": "insgd-l2",
    "learning_rate": 0.1,
    "dtype": "bfloat16",
    "epochs": 200,
    "train_and_test_seconds": 61.0,
    "seconds_at_median": 58.0,
    "last_top1": 0.905,
    "best_top1": 0.91,
}
RECORDS = [
    record(
        "a-case",
        NETWORK | {"seconds_to_first_chunk": 8.0, "seconds_per_step": 0.0015},
    ),
    record("a-crash", None, "failed", "ended with status -6. last | words\nof it"),
    record("a-moved", {"moved": "Disallowed"}, "failed", "within a chunk: Disallowed"),
    record("a-later", None, "stopped", "stopped"),
    record(
        "a-profile-sgd",
        NETWORK
        | {"optimizer": "sgd", "steps": 10, "events": 900, "busy": 0.95}
        | {"copies_with_host": {"MemcpyD2H": 2}},
    ),
    record("a-profile-lars", None, "failed", "ended with status -6"),
    record(
        "b-resnet20",
        NETWORK
        | {"image_size": 32, "rounds": 30, "errors": {"muon": "out of memory"}}
        | {
            "optimizers": {
                "sgd": step(0.001, 8, None),
                "x": step(0.002, 24, RATIO),
                "old": step(0.002, 24, RATIO) | {"profile": None},
            }
        },
    ),
    record("c-resnet20-insgd-l2", TRAINED),
    record("c-resnet20-sgd", {"epochs": 3, "of": 200}, "stopped", "stopped"),
    record(
        "d-pytorch-steps",
        NETWORK
        | {"versions": {"torch": "2.11.0"}, "errors": []}
        | {"steps": {"JAX sgd": step(0.001, 8, None) | {"over_pytorch": RATIO}}},
    ),
    record("d-pytorch-resnet20", TRAINED | {"optimizer": "PyTorch SGD"}),
    record("e-table6-1seed", {"markdown": "One seed.\n", "values": {}}),
    record("e-table6-3seeds", {"markdown": "Three seeds.\n", "values": {}}),
    record("f-learning-rates", {"markdown": "Rates.\n", "values": {}}),
]


def test_every_part_is_reported():
    output = report.to_markdown(RECORDS)
    lines = {" ".join(line.split()) for line in output.splitlines()}
    for line in (
        "Devices: NVIDIA H100 80GB HBM3.",
        "Commit: abc.",
        "Python 3.12.3, jax 0.11.2.",
        "| case | resnet20 | 128 | finished | 8.0 | 1.50 |",
        "| a-crash | failed | ended with status -6. last / words of it |",
        "| sgd | resnet20 | 10 | 900 | 95.0 % | 2 |",
        "| x | 2.000 | 1.250 (1.000 to 1.500) | 64000 | 3.0 | 16 | 12.5 % | 8 | 1.5 |",
        "| old | 2.000 | 1.250 (1.000 to 1.500) | 64000 | 3.0 | 16 | 12.5 % | | |",
        "- muon: out of memory",
        "| insgd-l2 | 0.1 | bfloat16 | 200 | 61.0 | 58.0 | 90.50 | 91.00 |",
        "| c-resnet20-sgd | stopped | stopped |",
        "| JAX sgd | 1.000 | 1.250 (1.000 to 1.500) | 128000 |",
        "| PyTorch SGD | 0.1 | bfloat16 | 200 | 61.0 | 58.0 | 90.50 | 91.00 |",
        "Three seeds.",
        "Rates.",
    ):
        assert line in lines
    assert "1 of 3 cases pass" in output
    assert "miniature" not in output
    assert "One seed." not in output


@pytest.mark.parametrize(
    ("seconds", "median", "shown"),
    [
        # `statistics.median` of all five returns 3, because it cannot order a NaN.
        ((9.0, 2.0, math.nan, 1.0, 3.0), 2.5, "12.5"),
        ((math.nan,), math.nan, ""),
    ],
)
def test_the_time_of_an_epoch_resumed_midway_is_unknown(seconds, median, shown):
    rows = [{"seconds": each, "test_top1": 0.5} for each in seconds]
    found = experiments.summarize(rows)
    np.testing.assert_equal(found["median_epoch_seconds"], median)
    # As in the file of a result.
    found = json.loads(strict_json.encode(found))
    assert found["train_and_test_seconds"] is None
    output = report.to_markdown([record("c-resnet20-sgd", TRAINED | found)])
    cells = [cell.strip() for cell in output.splitlines()[-3].split("|")]
    assert cells[4:9] == [str(len(rows)), "", shown, "50.00", "50.00"]


def test_cases_that_all_crash_are_counted():
    (crash,) = (each for each in RECORDS if each["name"] == "a-crash")
    assert "0 of 1 cases pass" in report.to_markdown([crash])


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_result_is_named(tmp_path, text):
    path = tmp_path / "results/a-case.json"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(UserError, match=f"{path} is damaged. Remove it"):
        report.report(ReportConfig(tmp_path))


def test_a_folder_without_results_is_an_error(tmp_path):
    with pytest.raises(UserError, match="has no results"):
        report.report(ReportConfig(tmp_path))


def test_a_folder_cannot_mix_settings(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.pieces.run", lambda piece, stop: 0)
    images = tmp_path / "images"
    images.mkdir()
    out = tmp_path / "out"
    assert gpu(GpuConfig(out, data=images)) == 0
    # Without --data, the images of the first call are used.
    seen = []
    monkeypatch.setattr(
        "benchmarks.pieces.run", lambda piece, stop: seen.append(piece) or 0
    )
    assert gpu(GpuConfig(out)) == 0
    assert seen[0].dataset == f"folder:{images}"
    with pytest.raises(UserError, match="was started with"):
        gpu(GpuConfig(out, miniature=True))
    with pytest.raises(UserError, match="is not a folder"):
        gpu(GpuConfig(out, data=tmp_path / "absent"))
