"""Datasets by name."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from train import own_code
from train.data.augment import Augmentation
from train.data.crops import Crops
from train.data.tfds.records import Records


class Preprocessing(NamedTuple):
    """Normalization and augmentation, which run on the device."""

    mean: tuple[float, ...]  # Mean of each channel, for pixels in [0, 1].
    std: tuple[float, ...]
    augmentation: Augmentation = Augmentation()  # In training only.
    # Shorter side of a resized image before its center is cropped. Default: as short as
    # covers the crop.
    shorter_side: int | None = None

    @classmethod
    def of(
        cls, images: np.ndarray, augmentation: Augmentation | None = None
    ) -> "Preprocessing":
        """Mean and standard deviation of the channels of training images.

        Args:
            images: uint8 of shape (samples, height, width, channels).
            augmentation: how they are varied in training; None for not at all.
        """
        # Of each value as many as there are: exact, and without a copy in float64.
        counts = [
            np.bincount(images[..., channel].ravel(), minlength=256)
            for channel in range(images.shape[-1])
        ]
        levels = np.arange(256) / 255
        means = [float(np.average(levels, weights=each)) for each in counts]
        variances = [
            np.average((levels - mean) ** 2, weights=each)
            for each, mean in zip(counts, means, strict=True)
        ]
        stds = tuple(map(float, np.sqrt(variances)))
        return cls(tuple(means), stds, augmentation or Augmentation())


class Split(NamedTuple):
    """Images and labels of a split."""

    images: np.ndarray  # shape=(samples, height, width, channels), dtype=uint8
    labels: np.ndarray  # shape=(samples,), dtype=int32


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset for classification."""

    name: str
    train: Any
    test: Any
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    # Hash of the images, their labels and their order.
    fingerprint: str = dataclasses.field(default="", kw_only=True)
    # Hash of the encoded files of a folder. Earlier versions recorded it as fingerprint.
    files_fingerprint: str = dataclasses.field(default="", kw_only=True)

    @property
    def num_train(self) -> int:
        """Number of training images."""
        return _num_images(self.train)

    @property
    def num_test(self) -> int:
        """Number of test images."""
        return _num_images(self.test)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(height, width, channels) of the network's input."""
        raise NotImplementedError

    def describe(self) -> dict[str, object]:
        """Returns the dataset's identity, for a run's record."""
        files = {"files": self.files_fingerprint} if self.files_fingerprint else {}
        return {
            "name": self.name,
            "train_images": self.num_train,
            "test_images": self.num_test,
            "image_shape": list(self.image_shape),
            "class_names": list(self.class_names),
            "fingerprint": self.fingerprint,
            **files,
        }

    def describe_preprocessing(self) -> dict[str, object]:
        """Returns the parameters of the normalization, for a run's record."""
        return {
            "mean": list(self.preprocessing.mean),
            "std": list(self.preprocessing.std),
            "shorter_side": self.preprocessing.shorter_side,
        }


def _num_images(split: Any) -> int:
    if isinstance(split, int):  # Of a `RecordedDataset`.
        return split
    return len(split.labels if isinstance(split, Split) else split)


@dataclasses.dataclass(frozen=True)
class RecordedDataset(Dataset):
    """The description of a dataset in a run's record, without images.

    Attributes:
        train: how many training images there were.
        test: how many test images.
        shape: (height, width, channels), as the network sees them.
    """

    train: int
    test: int
    shape: tuple[int, ...] = dataclasses.field(kw_only=True)

    @property
    def image_shape(self) -> tuple[int, ...]:
        return self.shape


@dataclasses.dataclass(frozen=True)
class ImageDataset(Dataset):
    """A dataset in memory, with images of one size.

    The default fingerprint is a hash of the arrays.
    """

    train: Split
    test: Split

    def __post_init__(self) -> None:
        if not self.fingerprint:
            digest = hashlib.sha256()
            for array in (*self.train, *self.test):
                digest.update(repr((array.shape, array.dtype)).encode())
                digest.update(np.ascontiguousarray(array).data)
            object.__setattr__(self, "fingerprint", digest.hexdigest())

    @property
    def image_shape(self) -> tuple[int, ...]:
        return self.train.images.shape[1:]


@dataclasses.dataclass(frozen=True)
class StreamedDataset(Dataset):
    """A dataset that is read on demand, with encoded images of any size.

    Attributes:
        crops: parameters of the crops.
    """

    train: Records
    test: Records
    crops: Crops

    @property
    def image_shape(self) -> tuple[int, ...]:
        return (self.crops.side, self.crops.side, 3)


class LoadOptions(NamedTuple):
    """Options for loading a dataset."""

    cache_dir: Path
    skip_corrupt_images: bool
    image_size: int | None = None  # To which images of a folder are brought.


def _digits(argument: str, options: LoadOptions) -> ImageDataset:
    del argument, options
    from train.data import digits  # scikit-learn is slow to import.

    return digits.load()


def _folder(argument: str, options: LoadOptions) -> ImageDataset:
    from train.data import folder as folder_dataset

    return folder_dataset.load(
        argument,
        options.cache_dir,
        skip_corrupt=options.skip_corrupt_images,
        image_size=options.image_size,
    )


def _cifar(name: str, argument: str, options: LoadOptions) -> ImageDataset:
    from train.data import cifar

    del argument
    return cifar.load(cifar.ALL[name], options.cache_dir)


def _imagenet(argument: str, options: LoadOptions) -> StreamedDataset:
    del argument, options
    from train.data import imagenet

    return imagenet.load()


class _Entry(NamedTuple):
    load: Callable[[str, LoadOptions], Dataset]
    argument: str = ""  # Placeholder for the text after the colon.


_DATASETS = {
    "digits": _Entry(_digits),
    "cifar10": _Entry(functools.partial(_cifar, "cifar10")),
    "cifar100": _Entry(functools.partial(_cifar, "cifar100")),
    "imagenet2012": _Entry(_imagenet),
    "folder": _Entry(_folder, "PATH"),
}

NAMES = (
    *(
        f"{name}:{entry.argument}" if entry.argument else name
        for name, entry in _DATASETS.items()
    ),
    own_code.FORM,
)


def check_name(name: str) -> None:
    """Raises a ValueError with the valid names unless `name` is one."""
    kind, colon, argument = name.partition(":")
    entry = _DATASETS.get(kind)
    if entry is None and own_code.is_reference(name):
        return
    if entry is None or bool(entry.argument) != bool(colon and argument):
        raise ValueError(
            f"unknown dataset {name!r}: expected one of {', '.join(NAMES)}"
        )


def absolute(name: str) -> str:
    """Returns the name with its path made absolute."""
    kind, colon, argument = name.partition(":")
    if not colon or kind not in _DATASETS:
        return name
    return f"{kind}:{Path(argument).expanduser().absolute()}"


def can_resize(name: str) -> bool:
    """Whether the images of a data set can be brought to `LoadOptions.image_size`."""
    return name.partition(":")[0] == "folder"


def short_name(name: str) -> str:
    """A name for files, without a path."""
    kind, _, argument = name.partition(":")
    if kind not in _DATASETS and own_code.is_reference(name):
        return f"{kind.rpartition('.')[2]}-{argument}"
    return Path(argument).name or kind


def load(name: str, options: LoadOptions) -> Dataset:
    """Loads a dataset.

    Args:
        name: one of `NAMES`, or MODULE:NAME for a function of the user.
        options: options for loading.

    Returns:
        The dataset.

    Raises:
        ValueError: if the name is unknown.
        train.errors.UserError: if the data cannot be used.
        train.errors.OwnCodeError: if the function of the user raises an exception.
    """
    check_name(name)
    kind, _, argument = name.partition(":")
    if kind not in _DATASETS:
        from train.data import own

        return own.load(name)
    return _DATASETS[kind].load(argument, options)
