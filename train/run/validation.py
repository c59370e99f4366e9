"""Splits validation images off the training images, to select the best epoch."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from train.data.tfds.records import Record, Records
from train.data.types import Dataset, ImageDataset, RecordedDataset, Split
from train.errors import UserError

# Purpose of a random generator, in addition to the run's seed, see `loader`.
_VALIDATION = 2


class Subset(Records):
    """A subset of the records of a split.

    Args:
        records: all of them.
        indices: the places of those that are in it, rising.
    """

    def __init__(self, records: Records, indices: np.ndarray):
        super().__init__(records.folder, records.split, len(indices))
        self._records = records
        self._indices = indices

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Reads the records with these indices of the subset."""
        return self._records.read(self._indices[np.asarray(indices)].tolist())


def split(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Splits validation images off the training images.

    Each class has its share of them, unless the images are read while they are needed:
    their labels are then not known.

    Args:
        dataset: all of the data.
        fraction: of the training images, above 0 and below 1.
        seed: of the choice.

    Returns:
        The data without these images, and data whose test images are these.

    Raises:
        UserError: if no image would be left on one side.
    """
    number = round(fraction * dataset.num_train)
    if not 0 < number < dataset.num_train:
        raise UserError(
            f"--validation-fraction {fraction:g} of the {dataset.num_train} training "
            f"images of {dataset.name} leaves none to "
            f"{'validate with' if not number else 'train on'}."
        )
    if isinstance(dataset, RecordedDataset):
        left = dataset.num_train - number
        return (
            dataclasses.replace(dataset, train=left),
            dataclasses.replace(dataset, test=number),
        )
    in_memory = isinstance(dataset, ImageDataset)
    labels = dataset.train.labels if in_memory else np.zeros(dataset.num_train, int)
    aside = choose(labels, number, seed)
    rest = np.setdiff1d(np.arange(dataset.num_train), aside, assume_unique=True)

    def part(indices: np.ndarray) -> Split | Subset:
        if in_memory:
            return Split(*(array[indices] for array in dataset.train))
        return Subset(dataset.train, indices)

    return (
        dataclasses.replace(dataset, train=part(rest)),
        dataclasses.replace(dataset, test=part(aside)),
    )


def choose(labels: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Draws a stratified subset of samples.

    Args:
        labels: of all samples.
        number: how many to choose.
        seed: of the choice.

    Returns:
        Their indices, rising.
    """
    rng = np.random.default_rng((seed, _VALIDATION))
    # In random order class by class; of these every so-many-th.
    order = np.lexsort((rng.random(len(labels)), labels))
    places = (np.arange(number) + rng.random()) * (len(labels) / number)
    return np.sort(order[np.minimum(places.astype(int), len(labels) - 1)])
