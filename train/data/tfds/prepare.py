"""`python -m train prepare`: converts datasets to files that the application reads."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import tyro

from train.data import cifar, imagenet
from train.data.tfds.reader import data_dir


def _cifar(name: str) -> None:
    from train.data.tfds import cifar as tfds_cifar  # Slow to import.

    chosen = cifar.ALL[name]
    tfds_cifar.prepare(chosen, cifar.find_archive(chosen), data_dir())


def _imagenet(name: str) -> None:
    del name
    archives = imagenet.archives()
    from train.data.tfds import imagenet as tfds_imagenet  # Slow to import.

    tfds_imagenet.prepare(archives, data_dir())


_PREPARE: dict[str, Callable[[str], None]] = {
    **dict.fromkeys(cifar.ALL, _cifar),
    imagenet.NAME: _imagenet,
}

if TYPE_CHECKING:  # The choices are known only at run time.
    Name: TypeAlias = str
else:
    Name = tyro.extras.literal_type_from_choices(tuple(_PREPARE))


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Convert a dataset to tensorflow-datasets' format, without TensorFlow."""

    name: tyro.conf.Positional[Name]
    """CIFAR is downloaded; ImageNet must be in TFDS_DATA_DIR/downloads/manual."""


def prepare(config: PrepareConfig) -> int:
    """Finds or downloads the archives, verifies them and writes the dataset."""
    _PREPARE[config.name](config.name)
    print(
        f"{config.name} was prepared in {data_dir() / config.name}. To train on it: "
        f"python -m train --dataset {config.name}"
    )
    return 0
