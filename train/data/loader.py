"""Batches of decoded images from worker processes, each a function of its index.

A batch does not depend on the worker that makes it or on the batches before it, so a
run can start at any step with any number of workers. Worker processes import this
module, so it does not import JAX.
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

from train.data.images import decode
from train.data.images.crops import Crops
from train.data.tfds.records import Records
from train.errors import UserError

# Seeds of the random generators by purpose, each combined with the run's seed.
_ORDER, _CROP = 0, 1


class TrainBatch(NamedTuple):
    """This process's rows of a training batch."""

    images: np.ndarray  # shape=(rows, side, side, 3), dtype=uint8
    labels: np.ndarray  # shape=(rows,), dtype=int32


class EvaluationBatch(NamedTuple):
    """This process's rows of an evaluation batch."""

    images: np.ndarray  # shape=(rows, side, side, 3), dtype=uint8
    labels: np.ndarray  # shape=(rows,), dtype=int32
    valid: np.ndarray  # shape=(rows,), dtype=bool: False for padding.


@dataclasses.dataclass(frozen=True, eq=False)
class TrainBatches:
    """Maps a step to this process's rows of its batch.

    An epoch visits the images in random order, each at most once. Images that do not
    fill a batch are dropped, different ones in each epoch.

    Attributes:
        records: the training images.
        crops: parameters of the crops.
        seed: seed of the order, the crops and the flips.
        batch_size: batch size summed over all processes.
        steps_per_epoch: number of batches in an epoch.
        rows: indices of this process's rows in a batch.
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
    """Maps an index to this process's rows of that batch of the test images.

    Attributes:
        records: the test images.
        crops: parameters of the crops.
        batch_size: batch size summed over all processes.
        rows: indices of this process's rows in a batch.
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


# Yields batches; closing it ends the workers.
Stream = Generator[Any, None, None]


def stream(
    load: Callable[[int], Any], first: int, end: int, num_workers: int
) -> Stream:
    """Yields batches that worker processes prefetch.

    Args:
        load: maps an index to a batch; sent to the workers.
        first: index of the first batch.
        end: index after the last batch, greater than `first`.
        num_workers: number of worker processes. Each prepares every num_workers-th
            batch, one ahead. With 0, this process makes batches on demand.

    Yields:
        The batches in order. Exceptions of workers are raised here.
    """
    import grain  # Slow to import.
    from absl import flags

    if not flags.FLAGS.is_parsed():
        # grain passes its flags on to its workers.
        flags.FLAGS.mark_as_parsed()
    made = grain.MapDataset.range(first, end).map(load)
    # Workers prefetch whole batches, so threads need not.
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
    """Adds a remedy to the error for a killed worker."""
    try:
        yield
    except RuntimeError as error:
        if "Worker process was terminated" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise UserError(
            f"A data worker died: {reason} Memory, or the space in /dev/shm for its "
            "batches, may have run out. Use fewer --data-workers or a smaller "
            "--batch-size."
        ) from error


@contextlib.contextmanager
def _signals_for_this_process_alone() -> Iterator[None]:
    """Blocks SIGINT and SIGTERM in processes started within this context.

    Terminals and clusters send these to all processes, but this one can finish the step
    and save only with its workers. Threads and processes inherit blocked signals.
    """
    signals = {signal.SIGINT, signal.SIGTERM}
    # Otherwise it starts with the first worker and unblocks the signals.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent(index: int, count: int) -> None:
    """Ends this worker when its parent ends for any reason."""
    del index, count

    def wait() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, length: int) -> np.ndarray:
    """Returns the order of the training images in an epoch; epochs count from 0."""
    return np.random.default_rng((seed, _ORDER, epoch)).permutation(length)


def _load(
    records: Records, indices: np.ndarray, crop: Callable[[Any, int], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Reads, decodes and crops images; returns them and their labels."""
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
            f"{records.describe(index)} cannot be decoded: {error}. Remove the folder, "
            "check the archives and prepare the dataset again."
        ) from error
