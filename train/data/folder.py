"""Loads a folder of images, decoding them once into a cache."""

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train import progress as progress_bars
from train.data import cache as array_cache
from train.data.cifar import CIFAR10
from train.data.images import crops, decode, image_folder
from train.data.images.augment import Augmentation
from train.data.images.image_folder import SPLITS, ImageFolder
from train.data.types import ImageDataset, Preprocessing, Split
from train.errors import UserError
from train.markdown import counted


def load(
    path: str,
    cache_dir: Path,
    *,
    skip_corrupt: bool = False,
    image_size: int | None = None,
) -> ImageDataset:
    """Loads `train/<class>/*` and `test/<class>/*` as RGB.

    Args:
        path: the folder.
        cache_dir: folder of the cache, which is used until the image folder changes.
            The contents of the files are hashed while they are decoded; later loads
            check only each file's state, see `file_state`.
        skip_corrupt: skip images that cannot be decoded, and list them.
        image_size: height and width in pixels. Images are resized so that their shorter
            side has this length, and center-cropped. None requires images of one size.

    Returns:
        The dataset, augmented as in section 4.1 of the paper: padded by an eighth of
        the image size (4 pixels at 32x32), cropped and flipped.

    Raises:
        UserError: if the folder cannot be used; names the file or folder at fault.
    """
    folder = image_folder.scan(path)
    identity = hashlib.sha256(str(folder.root).encode()).hexdigest()[:8]
    # Runs with different sizes must not overwrite each other's cache.
    resized = "" if image_size is None else f"-{image_size}"
    cache = cache_dir / f"{folder.root.name}-{identity}{resized}"
    cached = array_cache.read(cache, folder.fingerprint)
    if cached is None:
        # Before minutes of decoding.
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"The cache of decoded images {cache} cannot be created: "
                f"{error.strerror}. Pass another folder with --cache-dir."
            ) from error
        cached = _decode(folder, cache, image_size)
    arrays, record = cached
    _check_corrupt(record["corrupt"], folder, skip_corrupt)
    labels = np.unique(arrays["train_labels"])
    if missing := set(range(len(folder.class_names))).difference(labels):
        name = folder.class_names[min(missing)]
        raise UserError(
            f"None of the images in {folder.root / 'train' / name} can be decoded. "
            "Replace them, or remove the class folder."
        )
    side = min(arrays["train_images"].shape[1:3])
    return ImageDataset(
        name=f"folder:{folder.root}",
        train=Split(arrays["train_images"], arrays["train_labels"]),
        test=Split(arrays["test_images"], arrays["test_labels"]),
        class_names=folder.class_names,
        preprocessing=Preprocessing(
            CIFAR10.preprocessing.mean,
            CIFAR10.preprocessing.std,
            Augmentation(padding=side // 8, flip=True),
        ),
        files_fingerprint=record["contents"],
    )


def _decode(
    folder: ImageFolder, cache: Path, image_size: int | None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Decodes the images and writes the cache; returns the arrays and its record."""
    arrays: dict[str, np.ndarray] = {}
    corrupt: list[str] = []
    hashes: dict[str, str] = {}  # By relative path, which includes the class.
    first: tuple[str, tuple[int, ...]] | None = None
    for split in SPLITS:
        images, labels = [], []
        files = _shuffled(split, folder.files[split])
        for name in progress_bars.bar(files, f"Decoding {split} images", leave=False):
            encoded = (folder.root / name).read_bytes()
            hashes[name] = hashlib.sha256(encoded).hexdigest()
            try:
                image = (
                    decode.rgb(encoded)
                    if image_size is None
                    else crops.resize_and_crop(
                        decode.image(encoded), (image_size, image_size)
                    )
                )
            except decode.UNDECODABLE:
                corrupt.append(name)
                continue
            first = first or (name, image.shape)
            if image.shape != first[1]:
                raise UserError(
                    f"Images differ in size: {folder.root / first[0]} is "
                    f"{_size(first[1])}, {folder.root / name} is "
                    f"{_size(image.shape)}. Use --image-size to resize and crop them "
                    "all."
                )
            images.append(image)
            labels.append(folder.class_names.index(name.split("/")[1]))
        if not images:
            raise UserError(
                f"None of the {len(files)} images below {folder.root / split} can be "
                "decoded. Are they images?"
            )
        arrays[f"{split}_images"] = np.stack(images)
        arrays[f"{split}_labels"] = np.asarray(labels, np.int32)
    record = {
        "fingerprint": folder.fingerprint,
        "contents": hashlib.sha256(repr(sorted(hashes.items())).encode()).hexdigest(),
        "corrupt": sorted(corrupt),
    }
    array_cache.write(cache, arrays, record)
    return arrays, record


def _shuffled(split: str, files: Sequence[str]) -> list[str]:
    """Orders files by a hash, as the builders of tensorflow-datasets do.

    Earlier versions read folders through such a builder; their runs resume with the
    same order.
    """
    return sorted(
        files, key=lambda name: hashlib.md5(os.fsencode(f"{split}{name}")).digest()
    )


def _check_corrupt(corrupt: list[str], folder: ImageFolder, skip_corrupt: bool) -> None:
    if not corrupt:
        return
    count = counted(len(corrupt), "corrupt image")
    names = ", ".join(str(folder.root / name) for name in corrupt[:10])
    names += f" and {len(corrupt) - 10} more" if len(corrupt) > 10 else ""
    if not skip_corrupt:
        raise UserError(
            f"{count}: {names}. Replace or remove corrupt images, or skip them with "
            "--skip-corrupt-images."
        )
    print(f"Skipping {count}: {names}", file=sys.stderr)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
