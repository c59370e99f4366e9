"""CIFAR-10 and CIFAR-100: the published archives and their preprocessing."""

import dataclasses
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from train.data.augment import Augmentation
from train.data.registry import Preprocessing

_SIDE = 32
_IMAGE_BYTES = 3 * _SIDE * _SIDE


class Example(NamedTuple):
    """One image and its labels by name."""

    image: np.ndarray  # shape=(32, 32, 3), dtype=uint8
    labels: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Cifar:
    """CIFAR-10 or CIFAR-100.

    Attributes:
        name: name in tensorflow-datasets.
        archive: file name of the binary version's archive.
        sha256: SHA-256 of the archive.
        folder: folder of the files in the archive.
        files: files of each split.
        labels: file with the class names of each kind of label, in the order of the
            label bytes before each image. The network learns the one named "label".
        preprocessing: normalization and augmentation.
    """

    name: str
    archive: str
    sha256: str
    folder: str
    files: dict[str, tuple[str, ...]]
    labels: dict[str, str]
    preprocessing: Preprocessing

    @property
    def url(self) -> str:
        """URL of the published archive."""
        return f"https://www.cs.toronto.edu/~kriz/{self.archive}"

    def label_names(self, archive: Path) -> dict[str, list[str]]:
        """Returns the class names of each kind of label."""
        with tarfile.open(archive) as tar:
            return {
                kind: self._read(tar, file).decode().split()
                for kind, file in self.labels.items()
            }

    def examples(self, archive: Path, split: str) -> Iterator[Example]:
        """Yields the images of a split, in the order of the archive."""
        with tarfile.open(archive) as tar:
            for file in self.files[split]:
                records = np.frombuffer(self._read(tar, file), np.uint8)
                for record in records.reshape(-1, len(self.labels) + _IMAGE_BYTES):
                    labels, pixels = np.split(record, [len(self.labels)])
                    yield Example(
                        pixels.reshape(3, _SIDE, _SIDE).transpose(1, 2, 0),
                        dict(zip(self.labels, labels.tolist(), strict=True)),
                    )

    def _read(self, tar: tarfile.TarFile, file: str) -> bytes:
        content = tar.extractfile(f"{self.folder}/{file}")
        assert content is not None  # The checksum was verified, so it is a file.
        return content.read()


CIFAR10 = Cifar(
    name="cifar10",
    archive="cifar-10-binary.tar.gz",
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    folder="cifar-10-batches-bin",
    files={
        "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        "test": ("test_batch.bin",),
    },
    labels={"label": "batches.meta.txt"},
    # Section 4.1.
    preprocessing=Preprocessing(
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
        augmentation=Augmentation(padding=4, flip=True),
    ),
)

CIFAR100 = Cifar(
    name="cifar100",
    archive="cifar-100-binary.tar.gz",
    sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    folder="cifar-100-binary",
    files={"train": ("train.bin",), "test": ("test.bin",)},
    labels={
        "coarse_label": "coarse_label_names.txt",
        "label": "fine_label_names.txt",
    },
    # The paper gives none; these are from the authors' code.
    preprocessing=Preprocessing(
        mean=(0.5074, 0.4867, 0.4411),
        std=(0.2011, 0.1987, 0.2025),
        augmentation=Augmentation(padding=4, flip=True, reflect=True),
    ),
)

ALL = {cifar.name: cifar for cifar in (CIFAR10, CIFAR100)}
