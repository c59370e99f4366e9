"""A folder of images, `train/<class>/*` and `test/<class>/*`: what lies in it."""

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

from train.data import file_state
from train.errors import UserError

SPLITS = ("train", "test")
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
LAYOUT = "A folder data set holds train/<class>/<image> and test/<class>/<image>."


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """The images of a folder.

    Attributes:
        root: the folder, absolute.
        class_names: sorted; a class's place is its label.
        files: by split, the images in order, as paths below `root` with slashes.
        fingerprint: changes when any image's name or state does, see `file_state`.
    """

    root: Path
    class_names: tuple[str, ...]
    files: dict[str, tuple[str, ...]]
    fingerprint: str


def scan(path: str) -> ImageFolder:
    """Lists a folder and checks that it can be trained on.

    Args:
        path: the folder.

    Returns:
        What lies in it.

    Raises:
        UserError: if the folder, a split or a class is missing or empty.
    """
    root = Path(path).expanduser().absolute()
    if not root.is_dir():
        raise UserError(
            f"The image folder {root} does not exist. {LAYOUT} Give its path as "
            "--dataset folder:PATH."
        )
    digest = hashlib.sha256()
    classes: dict[str, list[str]] = {}
    files: dict[str, tuple[str, ...]] = {}
    for split in SPLITS:
        if not (root / split).is_dir():
            raise UserError(
                f"The image folder {root} has no folder {split}/. {LAYOUT} It holds: "
                f"{_contents(root)}."
            )
        found = {
            folder.name: _images(folder, digest) for folder in _folders(root / split)
        }
        empty = [name for name, images in found.items() if not images]
        if not found or len(empty) == len(found):
            raise UserError(
                f"{root / split} holds no images in class folders. {LAYOUT} It holds: "
                f"{_contents(root / split)}. Image files end in "
                f"{', '.join(SUFFIXES)}."
            )
        if empty:
            raise UserError(
                f"{root / split / empty[0]} holds no images. Put images there, or "
                f"remove the class folder. Image files end in {', '.join(SUFFIXES)}."
            )
        classes[split] = list(found)
        files[split] = tuple(
            f"{split}/{name}/{image}" for name in found for image in found[name]
        )
    unknown = [name for name in classes["test"] if name not in classes["train"]]
    if unknown:
        raise UserError(
            f"The class {unknown[0]!r} is in {root / 'test'} but not in "
            f"{root / 'train'}: nothing could be learned of it. Add training images "
            f"of it, or remove {root / 'test' / unknown[0]}. Classes in train/: "
            f"{', '.join(classes['train'])}."
        )
    if len(classes["train"]) < 2:
        raise UserError(
            f"{root / 'train'} holds one class, {classes['train'][0]!r}: there is "
            "nothing to tell apart. Add a second class folder."
        )
    return ImageFolder(root, tuple(classes["train"]), files, digest.hexdigest())


def _folders(folder: Path) -> list[os.DirEntry[str]]:
    """The class folders, by name; hidden ones are none."""
    with os.scandir(folder) as entries:
        found = [e for e in entries if e.is_dir() and not e.name.startswith(".")]
    return sorted(found, key=lambda entry: entry.name)


def _images(folder: os.DirEntry[str], digest: Any) -> list[str]:
    """The names of a class's images, in order; their state goes into `digest`."""
    with os.scandir(folder) as entries:
        found = [
            entry
            for entry in entries
            if entry.name.lower().endswith(SUFFIXES)
            and not entry.name.startswith(".")
            and entry.is_file()
        ]
    found.sort(key=lambda entry: entry.name)
    for entry in found:
        identity = (folder.path, entry.name, *file_state.of(entry.stat()))
        digest.update(repr(identity).encode())
    return [entry.name for entry in found]


def _contents(folder: Path, most: int = 5) -> str:
    names = sorted(os.listdir(folder))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "nothing"
