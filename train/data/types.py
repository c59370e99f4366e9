"""Datasets in memory and streamed: their images, labels and preprocessing."""

import dataclasses
import hashlib
from typing import Any, NamedTuple

import numpy as np

from train.data.images.augment import Augmentation
from train.data.images.crops import Crops
from train.data.tfds.records import Records


class Preprocessing(NamedTuple):
    """Normalization and augmentation, which run on the device."""

    mean: tuple[float, ...]  # Mean of each channel, for pixels in [0, 1].
    std: tuple[float, ...]
    augmentation: Augmentation = Augmentation()  # In training only.
    # Shorter side to which `TrainedModel.decode` resizes an image, before the center
    # crop. Default: the smallest that covers the crop.
    shorter_side: int | None = None

    @classmethod
    def of(
        cls, images: np.ndarray, augmentation: Augmentation | None = None
    ) -> "Preprocessing":
        """Returns a preprocessing with the channel statistics of training images.

        Args:
            images: uint8 of shape (samples, height, width, channels).
            augmentation: augmentation in training; None for none.
        """
        # From the histogram of values: exact, and without a copy in float64.
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
    # Hash of the images, their labels and their order. For ImageNet, hash of the names
    # and sizes of its files.
    fingerprint: str = dataclasses.field(default="", kw_only=True)
    # Hash of the encoded files of a folder. Earlier versions recorded it as the
    # fingerprint.
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
        """Returns the normalization and `shorter_side`, for a run's record."""
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
            # Types other than arrays are refused later, see `train.data.own`.
            for array in map(np.asarray, (*self.train, *self.test)):
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
