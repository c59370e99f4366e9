"""Concurrent commands: two write one cache, prepare one dataset, train one series."""

import collections
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.train import processes, tiny_imagenet
from train.data import cache as array_cache
from train.data import imagenet

ROUNDS = 200
# Each trains both runs of a series, or finds them trained.
SERIES = ["compare", "--optimizers", "sgd", "--seeds", "2", "--epochs", "1"]
SERIES += ["--batch-size", "16", "--parallel", "jit"]


def at_once(*calls):
    """Makes calls concurrently; returns their results."""
    with ThreadPoolExecutor() as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


@pytest.mark.slow
def test_readers_of_a_cache_with_two_writers_see_one_result_or_none(
    tmp_path, cases, report
):
    counts = collections.Counter()
    ended = threading.Event()

    def write(value):
        for _ in range(cases(ROUNDS)):
            arrays = {"a": np.full(1000, value), "b": np.full(10, value)}
            array_cache.write(tmp_path, arrays, {"fingerprint": "", "value": value})

    def write_both():
        at_once(lambda: write(1), lambda: write(2))
        ended.set()

    def read():
        while not ended.is_set():
            found = array_cache.read(tmp_path, "")
            counts["none" if found is None else found[1]["value"]] += 1
            if found is not None:
                arrays, record = found
                for array in arrays.values():
                    assert (array == record["value"]).all()

    at_once(write_both, read)
    write(3)
    assert array_cache.read(tmp_path, "")[1]["value"] == 3
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["arrays.npz", "record.json"]
    report(f"{2 * cases(ROUNDS)} writes by two: read {dict(counts)}")


@pytest.mark.slow
def test_a_dataset_prepared_by_two_commands_exists_once(data_dir, monkeypatch, report):
    from train.data.tfds import imagenet as tfds_imagenet

    tiny_imagenet.write_archives(data_dir, monkeypatch)
    examples, both = imagenet.examples, threading.Barrier(2, timeout=60)

    def wait_for_the_other(archive, split, labels):
        yield from examples(archive, split, labels)
        both.wait()

    monkeypatch.setattr(imagenet, "examples", wait_for_the_other)
    archives = imagenet.archives()
    folders = at_once(*[lambda: tfds_imagenet.prepare(archives, data_dir)] * 2)
    assert folders[0] == folders[1]
    assert [path.name for path in (data_dir / imagenet.NAME).iterdir()] == ["5.1.0"]
    assert imagenet.load().num_train == 27
    report("2 commands prepared a dataset at once")


@pytest.mark.slow
def test_two_commands_train_each_run_of_a_series_once(tmp_path, report):
    runs = tmp_path / "runs"
    command = ["tests.faults.tiny_command", *SERIES, "--runs-dir", str(runs)]
    statuses, output = processes.finish([command, command], tmp_path, timeout=400)
    assert statuses == [0, 0], output
    trained = [text.count("Test accuracy") for text in output]
    assert sum(trained) == 2
    tables = [
        [line for line in text.splitlines() if line[:1] == "|"] for text in output
    ]
    assert tables[0] == tables[1] != []
    assert "Traceback" not in "".join(output)
    report(f"2 commands trained {trained[0]} and {trained[1]} of 2 runs")
