"""Data sets by name: images as uint8 arrays, and how they are fed to a network."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from train.augment import Augmentation


class Preprocessing(NamedTuple):
    """What is done to images on the device."""

    mean: tuple[float, ...]  # Of each channel, of pixels in [0, 1].
    std: tuple[float, ...]
    augmentation: Augmentation  # In training alone.


class Split(NamedTuple):
    """Images and labels."""

    images: np.ndarray  # shape=(samples, height, width, channels), dtype=uint8
    labels: np.ndarray  # shape=(samples,), dtype=int32


@dataclasses.dataclass(frozen=True)
class ImageDataset:
    """A data set for classification that fits in memory."""

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    preprocessing: Preprocessing

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(height, width, channels)."""
        return self.train.images.shape[1:]

    def describe(self) -> dict[str, object]:
        """What makes it another data set, for a run's record; JSON."""
        return {
            "name": self.name,
            "train_images": len(self.train.labels),
            "test_images": len(self.test.labels),
            "image_shape": list(self.image_shape),
            "class_names": list(self.class_names),
        }


class LoadOptions(NamedTuple):
    """What loading may need beside the name."""

    cache_dir: Path
    skip_corrupt_images: bool


def _digits(argument: str, options: LoadOptions) -> ImageDataset:
    del argument, options
    from train import digits  # scikit-learn takes a second to import.

    return digits.load()


def _folder(argument: str, options: LoadOptions) -> ImageDataset:
    from train import folder_dataset

    return folder_dataset.load(
        argument, options.cache_dir, skip_corrupt=options.skip_corrupt_images
    )


def _cifar(name: str, argument: str, options: LoadOptions) -> ImageDataset:
    from train import cifar, prepared

    del argument
    return prepared.load(cifar.ALL[name], options.cache_dir)


class _Entry(NamedTuple):
    load: Callable[[str, LoadOptions], ImageDataset]
    argument: str = ""  # What follows the colon, in words for messages.


_DATASETS = {
    "digits": _Entry(_digits),
    "cifar10": _Entry(functools.partial(_cifar, "cifar10")),
    "cifar100": _Entry(functools.partial(_cifar, "cifar100")),
    "folder": _Entry(_folder, "PATH"),
}

NAMES = tuple(
    f"{name}:{entry.argument}" if entry.argument else name
    for name, entry in _DATASETS.items()
)


def check_name(name: str) -> None:
    """Raises a ValueError that lists the names, unless `name` is a data set's."""
    kind, colon, argument = name.partition(":")
    entry = _DATASETS.get(kind)
    if entry is None or bool(entry.argument) != bool(colon and argument):
        raise ValueError(f"unknown data set {name!r}: give one of {', '.join(NAMES)}")


def load(name: str, options: LoadOptions) -> ImageDataset:
    """Loads a data set.

    Args:
        name: one of `NAMES`.
        options: see `LoadOptions`.

    Returns:
        The data set.

    Raises:
        ValueError: for an unknown name.
        train.errors.UserError: if the data cannot be used as they are.
    """
    check_name(name)
    kind, _, argument = name.partition(":")
    return _DATASETS[kind].load(argument, options)
