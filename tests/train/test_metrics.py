"""Metrics on disk."""

import json
import math

import pytest

from train.run import metrics
from train.run.metrics import MetricsWriter

ROWS = [
    {"epoch": 1, "loss": 0.1 + 0.2, "multipliers": {"a/kernel": 0.125}, "names": ["a"]},
    {"epoch": 2, "loss": math.nan, "multipliers": {"a/kernel": math.inf}, "names": []},
]


@pytest.fixture
def path(tmp_path):
    writer = MetricsWriter(tmp_path / "metrics.jsonl", [], tensorboard=None)
    for row in ROWS:
        writer.write(row)
    writer.close()
    return tmp_path / "metrics.jsonl"


def test_each_row_is_a_line_of_plain_json(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    lines = [
        json.loads(x, parse_constant=refuse) for x in path.read_text().split("\n")[:-1]
    ]
    assert lines[0] == ROWS[0]
    assert lines[1]["loss"] is None


def test_rows_are_read_back_not_a_number_as_nan(path):
    rows = metrics.read(path)
    assert rows[0] == ROWS[0]
    assert math.isnan(rows[1]["loss"])
    assert math.isnan(rows[1]["multipliers"]["a/kernel"])


def test_a_line_cut_short_ends_the_rows(path):
    path.write_text(path.read_text()[:-10])
    assert metrics.read(path) == ROWS[:1]


def test_no_file_has_no_rows(tmp_path):
    assert metrics.read(tmp_path / "none") == []


def test_going_on_cuts_off_what_is_not_kept(path):
    writer = MetricsWriter(path, ROWS[:1], tensorboard=None)
    writer.write({"epoch": 2, "loss": 1.0})
    writer.close()
    assert metrics.read(path) == [ROWS[0], {"epoch": 2, "loss": 1.0}]


def test_tensorboard_gets_the_numbers(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    writer = MetricsWriter(tmp_path / "metrics.jsonl", [], tmp_path / "tensorboard")
    writer.write(ROWS[0])
    writer.close()

    (file,) = (tmp_path / "tensorboard").iterdir()
    content = file.read_bytes()
    # Records: length, its checksum, the event, its checksum.
    scalars, start = {}, 0
    while start < len(content):
        length = int.from_bytes(content[start : start + 8], "little")
        event = Event.FromString(content[start + 12 : start + 12 + length])
        for value in event.summary.value:
            scalars[value.tag] = (value.simple_value, event.step)
        start += 12 + length + 4
    assert scalars["multipliers/a/kernel"] == (0.125, 1)
    assert scalars["loss"] == (pytest.approx(0.3), 1)
