"""Batches of decoded images, made by worker processes: each from its number alone.

Whoever makes a batch, and in whichever order, it is the same: a run may start at any
step, with any number of workers. Worker processes import this module: it needs no JAX.
"""

import contextlib
import dataclasses
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from multiprocessing import resource_tracker
from typing import Any, NamedTuple

import numpy as np

from train.data import decode
from train.data.crops import Crops
from train.data.tfds.records import Records
from train.errors import UserError

# What a random number is drawn for, beside the run's seed.
_ORDER, _CROP = 0, 1


class TrainBatch(NamedTuple):
    """A share of a batch to train on."""

    images: np.ndarray  # shape=(rows, side, side, 3), dtype=uint8
    labels: np.ndarray  # shape=(rows,), dtype=int32


class EvaluationBatch(NamedTuple):
    """A share of a batch to evaluate on."""

    images: np.ndarray  # shape=(rows, side, side, 3), dtype=uint8
    labels: np.ndarray  # shape=(rows,), dtype=int32
    valid: np.ndarray  # shape=(rows,), dtype=bool: False where it is filled up.


@dataclasses.dataclass(frozen=True, eq=False)
class TrainBatches:
    """Step -> a share of its batch.

    An epoch sees the images in a random order, each at most once; those that fill no
    batch are left out, other ones every epoch.

    Attributes:
        records: of the training images.
        crops: how they are cropped.
        seed: of the order, the crops and the flips.
        batch_size: over all processes.
        steps_per_epoch: how many batches an epoch has.
        rows: those of a batch that this process reads.
    """

    records: Records
    crops: Crops
    seed: int
    batch_size: int
    steps_per_epoch: int
    rows: np.ndarray

    def __call__(self, step: int) -> TrainBatch:
        epoch, place = divmod(step, self.steps_per_epoch)
        order = _order(self.seed, epoch, len(self.records))
        indices = order[place * self.batch_size + self.rows]

        def crop(image: Any, index: int) -> np.ndarray:
            rng = np.random.default_rng((self.seed, _CROP, epoch, index))
            return self.crops.train(image, rng)

        return TrainBatch(*_load(self.records, indices, crop))


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationBatches:
    """Number -> a share of that batch of the test images, each of which is in one.

    Attributes:
        records: of the test images.
        crops: how they are cropped.
        batch_size: over all processes.
        rows: those of a batch that this process reads.
    """

    records: Records
    crops: Crops
    batch_size: int
    rows: np.ndarray

    def __call__(self, number: int) -> EvaluationBatch:
        indices = number * self.batch_size + self.rows
        valid = indices < len(self.records)
        images = np.zeros((len(indices), self.crops.side, self.crops.side, 3), np.uint8)
        labels = np.zeros(len(indices), np.int32)
        if valid.any():
            images[valid], labels[valid] = _load(
                self.records, indices[valid], lambda image, _: self.crops.test(image)
            )
        return EvaluationBatch(images, labels, valid)


# Batches one after another, until it is closed, which ends the workers.
Stream = Generator[Any, None, None]


def stream(
    load: Callable[[int], Any], first: int, end: int, num_workers: int
) -> Stream:
    """Makes batches ahead of their use.

    Args:
        load: number -> batch; sent to the workers.
        first: the first batch's number; those before it are not made.
        end: the number after the last; there is at least one.
        num_workers: processes that make every so-many-th batch each, and one ahead; 0
            makes them in this process, when they are asked for.

    Yields:
        The batches, in order. What a worker raises comes out here.
    """
    import grain  # Takes a second.
    from absl import flags

    if not flags.FLAGS.is_parsed():
        # grain reads its options from there to hand them to its workers.
        flags.FLAGS.mark_as_parsed()
    made = grain.MapDataset.range(first, end).map(load)
    # A batch is as much as a thread could read ahead of time.
    in_order = made.to_iter_dataset(
        grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    )
    workers = grain.MultiprocessingOptions(num_workers=num_workers)
    made_ahead = in_order.mp_prefetch(workers, worker_init_fn=_end_with_parent)
    with contextlib.closing(iter(made_ahead)) as batches, _deaths_explained():
        with _signals_for_this_process_alone():
            batch = next(batches)  # Starts the workers.
        yield batch
        yield from batches


@contextlib.contextmanager
def _deaths_explained() -> Iterator[None]:
    """Says what to do when a worker was killed."""
    try:
        yield
    except RuntimeError as error:
        if "Worker process was terminated" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise UserError(
            f"A process that reads images died: {reason} It may have had too little "
            "memory, or /dev/shm too little room for its batches. Give fewer "
            "--data-workers, or a smaller --batch-size."
        ) from error


@contextlib.contextmanager
def _signals_for_this_process_alone() -> Iterator[None]:
    """Processes started meanwhile never get Ctrl-C, nor a cluster's signal to end.

    These reach all processes, and this one needs its workers to finish its step and
    save. What a thread has blocked stays so in the threads and processes it starts.
    """
    signals = {signal.SIGINT, signal.SIGTERM}
    # It would be started with the first worker, and unblock them on its way.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent(index: int, count: int) -> None:
    """Ends this worker when its parent has ended, in whatever way."""
    del index, count

    def wait() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, length: int) -> np.ndarray:
    """The order of the training images in an epoch, counted from 0."""
    return np.random.default_rng((seed, _ORDER, epoch)).permutation(length)


def _load(
    records: Records, indices: np.ndarray, crop: Callable[[Any, int], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Reads, decodes and crops images; returns them with their labels."""
    found = records.read(indices.tolist())
    images = [
        crop(_decode(records, index, record.image), index)
        for index, record in zip(indices.tolist(), found, strict=True)
    ]
    labels = [record.label for record in found]
    return np.stack(images), np.asarray(labels, np.int32)


def _decode(records: Records, index: int, encoded: bytes) -> Any:
    try:
        return decode.image(encoded)
    except decode.UNDECODABLE as error:
        raise UserError(
            f"Image {index} of the split {records.split} in {records.folder} cannot be "
            f"decoded: {error}. Remove the folder, check the archives, and prepare the "
            "data set again."
        ) from error
