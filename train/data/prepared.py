"""Loads CIFAR as prepared by tensorflow-datasets or `python -m train prepare`.

Only `archive` uses the network.
"""

import hashlib
import os
import tempfile
import urllib.request
from pathlib import Path

import numpy as np

from train import progress as progress_bars
from train.data import cache as array_cache
from train.data import decode
from train.data.cifar import Cifar
from train.data.registry import ImageDataset, Split
from train.data.tfds import reader
from train.data.tfds.data_dir import data_dir, find
from train.errors import UserError

SPLITS = ("train", "test")


def load(cifar: Cifar, cache_dir: Path) -> ImageDataset:
    """Loads a prepared dataset and caches its decoded arrays in `cache_dir`.

    Raises:
        UserError: if it is not prepared, or not as array_record files.
    """
    folder = _find(cifar)
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


def _find(cifar: Cifar) -> Path:
    return find(
        cifar.name,
        f"Run: python -m train prepare {cifar.name}. It downloads {cifar.url}; without a "
        f"network, put that file in {data_dir() / 'downloads'} first.",
    )


def _decode(folder: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    arrays: dict[str, np.ndarray] = {}
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
    return arrays, class_names


def archive(cifar: Cifar) -> Path:
    """Returns the archive in the download folder, downloading it if necessary.

    Raises:
        UserError: if it cannot be downloaded, or is not the published file.
    """
    folder = data_dir() / "downloads"
    path = folder / cifar.archive
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _download(cifar, path)
    sha256 = _sha256(path)
    if sha256 != cifar.sha256:
        raise UserError(
            f"{path} is not {cifar.url} as published: its SHA-256 is {sha256}, not "
            f"{cifar.sha256}. Remove it and run this again."
        )
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(cifar: Cifar, path: Path) -> None:
    # Other commands may download the same file. Interrupts clean up only temporary
    # folders, hence no mkstemp.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="partial-") as folder:
        partial = Path(folder) / path.name
        _fetch(cifar, partial)
        # `read` does not raise if the connection is cut.
        if (sha256 := _sha256(partial)) != cifar.sha256:
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
            f"{cifar.url} cannot be downloaded: {error}. Without a network, put the "
            f"file in {data_dir() / 'downloads'} and run this again."
        ) from error
