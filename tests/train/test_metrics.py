"""Metrics on disk."""

import json
import math

import pytest

from train.run import metrics
from train.run.metrics import MetricsWriter

from .results import row


def insgd_row(epoch, loss, multiplier, names):
    return row(
        epoch,
        train_loss=loss,
        test_loss=loss,
        multipliers={"a/kernel": multiplier},
        powers={"a/kernel": 1.5},
        mean_multiplier=multiplier,
        weights_at_floor=len(names),
        at_floor=names,
    )


ROWS = [
    insgd_row(1, 0.1 + 0.2, 0.125, ["a"]),
    insgd_row(2, math.nan, math.inf, []),
]


@pytest.fixture
def path(tmp_path):
    writer = MetricsWriter(tmp_path / "metrics.jsonl", [], tensorboard=None)
    for each in ROWS:
        writer.write(each)
    writer.close()
    return tmp_path / "metrics.jsonl"


def test_each_row_is_a_line_of_plain_json(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    lines = [
        json.loads(x, parse_constant=refuse) for x in path.read_text().split("\n")[:-1]
    ]
    assert lines[0] == ROWS[0]
    assert lines[1]["train_loss"] is None


def test_rows_are_read_back_with_null_as_nan(path):
    rows = metrics.read(path)
    assert rows[0] == ROWS[0]
    assert math.isnan(rows[1]["train_loss"])
    assert math.isnan(rows[1]["multipliers"]["a/kernel"])


def test_a_line_cut_short_ends_the_rows(path):
    path.write_text(path.read_text()[:-10])
    assert metrics.read(path) == ROWS[:1]


def test_no_row_is_read_after_a_damaged_line(path):
    first, second = path.read_text().splitlines()
    path.write_text("\n".join([first, second[:-10], second]))
    assert metrics.read(path) == ROWS[:1]


def test_a_restored_last_line_causes_one_warning(path):
    copy = metrics.to_json(ROWS)
    path.write_text(path.read_text()[:-10])
    rows, (warning,) = metrics.recover(path, 6, copy)
    assert metrics.to_json(rows) == copy
    assert "line 2 is missing or damaged; restored" in warning


def test_a_missing_file_has_no_rows(tmp_path):
    assert metrics.read(tmp_path / "none") == []


def test_resuming_drops_rows_that_are_not_kept(path):
    writer = MetricsWriter(path, ROWS[:1], tensorboard=None)
    other = row(2, train_loss=1.0)
    writer.write(other)
    writer.close()
    assert metrics.read(path) == [ROWS[0], other]


def tensorboard_events(folder):
    """The events of a folder's one file."""
    from tensorboardX.proto.event_pb2 import Event

    (file,) = folder.iterdir()
    content = file.read_bytes()
    # Records: length, its checksum, the event, its checksum.
    events, start = [], 0
    while start < len(content):
        length = int.from_bytes(content[start : start + 8], "little")
        events.append(Event.FromString(content[start + 12 : start + 12 + length]))
        start += 12 + length + 4
    return events


def test_tensorboard_gets_the_metrics(tmp_path):
    writer = MetricsWriter(tmp_path / "metrics.jsonl", [], tmp_path / "tensorboard")
    writer.write(ROWS[0])
    writer.close()

    scalars = {
        value.tag: (value.simple_value, event.step)
        for event in tensorboard_events(tmp_path / "tensorboard")
        for value in event.summary.value
    }
    assert scalars["multipliers/a/kernel"] == (0.125, 1)
    assert scalars["train_loss"] == (pytest.approx(0.3), 1)


def test_tensorboard_drops_epochs_that_are_trained_again(tmp_path):
    from tensorboardX.proto.event_pb2 import SessionLog

    kept = ROWS[:1]
    MetricsWriter(tmp_path / "metrics.jsonl", kept, tmp_path / "tensorboard").close()
    starts = [
        event.step
        for event in tensorboard_events(tmp_path / "tensorboard")
        if event.session_log.status == SessionLog.SessionStatus.START
    ]
    assert starts == [2]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epoch", 0),
        ("epoch", True),
        ("step", "3"),
        ("test_top1", "high"),
        ("test_top5", [1]),
        ("powers", None),
        ("powers", {}),
        ("multipliers", {"a/kernel": "big"}),
        ("at_floor", [1]),
        ("mean_multiplier", {}),
    ],
)
def test_a_row_with_a_value_of_another_type_is_damaged(path, name, value):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1][name] = value
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert metrics.read(path) == ROWS[:1]
    recovered = metrics.recover(path, 6, None)
    assert recovered.rows == ROWS[:1]
    assert "line 2 is damaged" in recovered.warnings[0]


def test_without_a_copy_lost_epochs_are_named(path):
    third = row(3)
    lines = path.read_text().splitlines()
    lines = ["{", lines[0], "null", json.dumps(third)]
    path.write_text("\n".join(lines))
    recovered = metrics.recover(path, 9, None)
    assert recovered.rows == [ROWS[0], third]
    assert "lines 1, 3 are damaged" in recovered.warnings[0]
    assert "the metrics of epoch 2 are lost" in recovered.warnings[1]


def test_a_link_in_place_of_the_metrics_is_not_followed(tmp_path):
    for name in ("metrics.partial", "metrics.jsonl"):
        (tmp_path / "precious").write_text("!")
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).symlink_to(tmp_path / "precious")
        writer = MetricsWriter(tmp_path / "metrics.jsonl", [], tensorboard=None)
        writer.write(ROWS[0])
        writer.close()
        assert (tmp_path / "precious").read_text() == "!"
    assert metrics.read(tmp_path / "metrics.jsonl") == ROWS[:1]
