"""CIFAR-10 and CIFAR-100: their archives, preprocessing and prepared datasets.

Only `find_archive` accesses the Internet.
"""

import dataclasses
import hashlib
import os
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from train import progress as progress_bars
from train.data import cache as array_cache
from train.data.images import decode
from train.data.images.augment import Augmentation
from train.data.tfds import reader
from train.data.tfds.reader import data_dir
from train.data.types import ImageDataset, Preprocessing, Split
from train.errors import UserError

SPLITS = ("train", "test")

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
        """Yields the images of a split, in the order of `files`."""
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
    # From section 4.1 of the paper.
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


def load(cifar: Cifar, cache_dir: Path) -> ImageDataset:
    """Loads a prepared dataset and caches its decoded arrays in `cache_dir`.

    Raises:
        UserError: if it is not prepared, or not as array_record files.
    """
    folder = reader.find(
        cifar.name,
        f"Run: python -m train prepare {cifar.name}. It downloads {cifar.url}; if "
        f"offline, put that file in {data_dir() / 'downloads'} first.",
    )
    files = sorted(path for path in folder.iterdir() if path.is_file())
    states = [(path.name, *array_cache.file_state(path.stat())) for path in files]
    fingerprint = hashlib.sha256(repr(states).encode()).hexdigest()
    cache = cache_dir / cifar.name
    found = array_cache.read(cache, fingerprint)
    if found is None:
        arrays, class_names = _decode(folder)
        record = {"fingerprint": fingerprint, "class_names": class_names}
        array_cache.write(cache, arrays, record)
    else:
        arrays, record = found
    return ImageDataset(
        name=cifar.name,
        train=Split(arrays["train_images"], arrays["train_labels"]),
        test=Split(arrays["test_images"], arrays["test_labels"]),
        class_names=tuple(record["class_names"]),
        preprocessing=cifar.preprocessing,
    )


def _decode(folder: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    arrays: dict[str, np.ndarray] = {}
    with reader.naming_damage(folder):
        for split in SPLITS:
            source = reader.open_split(folder, split)
            images, labels = [], []
            for example in progress_bars.bar(
                source, f"Decoding {split} images", leave=False
            ):
                images.append(decode.rgb(example["image"]))
                labels.append(example["label"])
            arrays[f"{split}_images"] = np.stack(images)
            arrays[f"{split}_labels"] = np.asarray(labels, np.int32)
        class_names = (folder / "label.labels.txt").read_text().splitlines()
        numbers = np.concatenate([arrays[f"{split}_labels"] for split in SPLITS])
        if not 0 <= numbers.min() <= numbers.max() < len(class_names):
            raise ValueError(f"a label is not one of {len(class_names)} classes")
    return arrays, class_names


def find_archive(cifar: Cifar) -> Path:
    """Returns the archive in the download folder, downloading it if necessary.

    Raises:
        UserError: if it cannot be downloaded, or is not the published file.
    """
    folder = data_dir() / "downloads"
    path = folder / cifar.archive
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _download(cifar, path)
    sha256 = array_cache.sha256_of(path)
    if sha256 != cifar.sha256:
        raise UserError(
            f"{path} is not {cifar.url} as published: its SHA-256 is {sha256}, not "
            f"{cifar.sha256}. Remove it and run this again."
        )
    return path


def _download(cifar: Cifar, path: Path) -> None:
    # Other commands may download the same file. Interrupts clean up only temporary
    # folders, hence no mkstemp.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="partial-") as folder:
        partial = Path(folder) / path.name
        _fetch(cifar, partial)
        # `read` does not raise if the connection is cut.
        if (sha256 := array_cache.sha256_of(partial)) != cifar.sha256:
            raise UserError(
                f"The download of {cifar.url} is incomplete or is not the published "
                f"file: its SHA-256 is {sha256}, not {cifar.sha256}. Run this again."
            )
        os.replace(partial, path)


def _fetch(cifar: Cifar, path: Path) -> None:
    try:
        with (
            urllib.request.urlopen(cifar.url, timeout=10) as response,
            path.open("wb") as file,
            progress_bars.bar(
                total=int(response.headers.get("Content-Length") or 0) or None,
                desc=cifar.archive,
                unit="B",
                unit_scale=True,
            ) as bar,
        ):
            while block := response.read(1 << 20):
                file.write(block)
                bar.update(len(block))
    except OSError as error:
        raise UserError(
            f"{cifar.url} cannot be downloaded: {error}. If you are offline, put the "
            f"file in {data_dir() / 'downloads'} and run this again."
        ) from error
