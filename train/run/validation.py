"""Splits validation images off the training images, to select the best epoch."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from train.data.tfds.records import Record, Records
from train.data.types import Dataset, ImageDataset, RecordedDataset, Split
from train.errors import UserError
from train.markdown import counted

# Seeds a random generator together with the run's seed; `loader` uses 0 and 1.
_VALIDATION = 2


class Subset(Records):
    """A subset of the records of a split.

    Args:
        records: all records of the split.
        indices: indices of the records in the subset, in ascending order.
    """

    def __init__(self, records: Records, indices: np.ndarray):
        super().__init__(records.folder, records.split, len(indices))
        self._records = records
        self._indices = indices

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Reads the records with these indices of the subset."""
        return self._records.read(self._indices[np.asarray(indices)].tolist())

    def describe(self, index: int) -> str:
        """Names the image with this index of the subset by its index in the split."""
        return self._records.describe(self._indices[index])


def split(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Splits validation images off the training images.

    The split is stratified by class, unless the dataset is streamed: its labels are
    then not known in advance.

    Args:
        dataset: all of the data.
        fraction: fraction of the training images, above 0 and below 1.
        seed: seed of the random choice.

    Returns:
        The dataset without the validation images, and a dataset with them as its test
        images.

    Raises:
        UserError: if no image would be left on one side.
    """
    number = round(fraction * dataset.num_train)
    if not 0 < number < dataset.num_train:
        raise UserError(
            f"--validation-fraction {fraction:g} of the "
            f"{counted(dataset.num_train, 'training image')} of {dataset.name} leaves "
            f"none to {'validate with' if not number else 'train on'}."
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
        labels: labels of all samples.
        number: number of samples to choose.
        seed: seed of the random choice.

    Returns:
        Indices of the chosen samples, in ascending order.
    """
    rng = np.random.default_rng((seed, _VALIDATION))
    # Sort by class, in random order within each, and take samples at equal distances.
    order = np.lexsort((rng.random(len(labels)), labels))
    places = (np.arange(number) + rng.random()) * (len(labels) / number)
    return np.sort(order[np.minimum(places.astype(int), len(labels) - 1)])
