"""Batches of records: the same from all workers and from any first step."""

import contextlib
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from train.data import loader as batches
from train.data.images.crops import Crops
from train.data.tfds.records import Record, Records
from train.errors import UserError
from train.run.validation import Subset

from . import processes

CROPS = Crops(side=8, shorter_side=10)
NUM_RECORDS, BATCH_SIZE, STEPS = 23, 4, 5


class FakeRecords(Records):
    """Records in memory; a record's label is its index."""

    def __init__(self):
        super().__init__("a folder", "train", NUM_RECORDS)
        rng = np.random.default_rng(0)
        self.encoded = []
        self.reads = []
        for _ in range(NUM_RECORDS):
            height, width = rng.integers(8, 20, 2)
            pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "png")
            self.encoded.append(file.getvalue())

    def read(self, indices):
        self.reads.extend(indices)
        return [Record(self.encoded[index], int(index)) for index in indices]


def train_batches(rows=range(BATCH_SIZE), seed=0, batch_size=BATCH_SIZE, steps=STEPS):
    return batches.TrainBatches(
        FakeRecords(), CROPS, seed, batch_size, steps, np.asarray(rows)
    )


def made(load, first, end, num_workers):
    with contextlib.closing(batches.stream(load, first, end, num_workers)) as stream:
        return [type(batch)(*map(np.array, batch)) for batch in stream]


def assert_equal(got, expected):
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert one._fields == other._fields
        for mine, its in zip(one, other, strict=True):
            assert mine.dtype == its.dtype
            np.testing.assert_array_equal(mine, its)


def test_an_epoch_sees_each_image_at_most_once_in_an_order_of_its_own():
    all_made = made(train_batches(), 0, 2 * STEPS, 0)
    assert len(all_made) == 2 * STEPS
    labels = np.array([batch.labels for batch in all_made]).reshape(2, -1).tolist()
    for epoch in labels:
        assert len(set(epoch)) == BATCH_SIZE * STEPS
    assert labels[0] != labels[1]
    assert set(labels[0]) != set(labels[1])  # Different images are left out.
    another = made(train_batches(seed=1), 0, STEPS, 0)
    assert [one for batch in another for one in batch.labels.tolist()] != labels[0]


def test_a_crop_depends_only_on_seed_epoch_and_image():
    records = FakeRecords()

    def by_image(load, first, end):
        return {
            label: image.tobytes()
            for batch in made(load, first, end, 0)
            for image, label in zip(batch.images, batch.labels.tolist(), strict=True)
        }

    whole = by_image(train_batches(range(NUM_RECORDS), 0, NUM_RECORDS, 1), 0, 1)
    assert len(whole) == NUM_RECORDS
    in_batches = by_image(train_batches(), 0, STEPS)
    assert in_batches == {label: whole[label] for label in in_batches}
    for label, image in whole.items():
        with Image.open(io.BytesIO(records.encoded[label])) as opened:
            rng = np.random.default_rng((0, 1, 0, label))
            assert CROPS.train(opened, rng).tobytes() == image
    later = by_image(train_batches(range(NUM_RECORDS), 0, NUM_RECORDS, 1), 1, 2)
    assert not set(later.values()) & set(whole.values())


def test_workers_make_the_same_batches():
    load = train_batches()
    expected = made(load, 0, 7, 0)
    assert_equal(made(load, 0, 7, 2), expected)
    assert not multiprocessing.active_children()


def test_batches_from_any_step_are_the_same_and_skip_earlier_reads():
    expected = made(train_batches(), 0, 2 * STEPS, 0)
    for first in (3, STEPS, STEPS + 2):
        load = train_batches()
        assert_equal(made(load, first, 2 * STEPS, 0), expected[first:])
        assert len(load.records.reads) == (2 * STEPS - first) * BATCH_SIZE


def test_processes_read_only_their_share_of_each_batch():
    expected = made(train_batches(), 0, STEPS, 0)
    loads = train_batches([0, 1]), train_batches([2, 3])
    shares = [made(load, 0, STEPS, 0) for load in loads]
    together = [
        batches.TrainBatch(*map(np.concatenate, zip(*parts, strict=True)))
        for parts in zip(*shares, strict=True)
    ]
    assert_equal(together, expected)
    read = [set(load.records.reads) for load in loads]
    assert not read[0] & read[1]
    assert len(read[0] | read[1]) == BATCH_SIZE * STEPS


@pytest.mark.parametrize("batch_size", [4, 8, 23, 46])
def test_each_test_image_counts_once_in_some_process(batch_size):
    half = batch_size // 2
    seen = []
    for rows in (np.arange(half), np.arange(half, batch_size)):
        records = FakeRecords()
        load = batches.EvaluationBatches(records, CROPS, batch_size, rows)
        for batch in made(load, 0, -(-NUM_RECORDS // batch_size), 0):
            assert batch.images.shape == (len(rows), 8, 8, 3)
            for image, label, valid in zip(*batch, strict=True):
                if valid:
                    seen.append(int(label))
                    with Image.open(io.BytesIO(records.encoded[label])) as opened:
                        np.testing.assert_array_equal(image, CROPS.test(opened))
                else:
                    assert not image.any() and label == 0
    assert sorted(seen) == list(range(NUM_RECORDS))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_that_cannot_be_decoded_is_named(num_workers):
    load = train_batches(range(NUM_RECORDS), 0, NUM_RECORDS, 1)
    load.records.encoded[7] = b"no image"
    with pytest.raises(UserError, match="Image 7 of the split train in a folder"):
        made(load, 0, 1, num_workers)


def test_an_image_of_a_subset_is_named_by_its_index_in_the_split():
    records = FakeRecords()
    records.encoded[7] = b"no image"
    subset = Subset(records, np.array([3, 7]))
    load = batches.EvaluationBatches(subset, CROPS, 2, np.arange(2))
    with pytest.raises(UserError, match="Image 7 of the split train in a folder"):
        load(0)


@pytest.mark.slow
def test_workers_ignore_the_signals_that_stop_a_run():
    expected = made(train_batches(), 0, 8, 0)

    def interrupt():
        while len(workers := multiprocessing.active_children()) < 2:
            time.sleep(0.01)
        for worker in workers:  # They are not ready yet.
            os.kill(worker.pid, signal.SIGINT)
            os.kill(worker.pid, signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    with contextlib.closing(batches.stream(train_batches(), 0, 8, 2)) as stream:
        thread.start()
        assert_equal(list(stream), expected)
    thread.join()
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.slow
def test_a_worker_that_is_killed_is_an_error_with_remedies():
    load = train_batches()
    with contextlib.closing(batches.stream(load, 0, 10**6, 2)) as stream:
        next(stream)
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        with pytest.raises(UserError, match="exit code -9.*fewer --data-workers"):
            for _ in stream:
                pass


PARENT = """
import sys
from train.data import loader as batches

def load(number):
    return number

if __name__ == "__main__":
    stream = batches.stream(load, 0, 10**6, 1)
    next(stream)
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_workers_end_with_their_parent_however_it_ends(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    for end in (signal.SIGKILL, signal.SIGTERM, None):
        with subprocess.Popen(
            [sys.executable, script],
            env=os.environ | {"PYTHONPATH": str(processes.ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as parent:
            assert parent.stdout.readline() == b"ready\n"
            if end is not None:
                parent.send_signal(end)
            # Closes its input. Its output ends when no process holds it any longer.
            parent.communicate(timeout=60)
        assert parent.returncode == (0 if end is None else -end)
