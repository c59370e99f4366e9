"""Lists a folder of images, `train/<class>/*` and `test/<class>/*`."""

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

from train.data.cache import file_state
from train.errors import UserError, print_warning

SPLITS = ("train", "test")
SUFFIXES = (
    ".bmp",
    ".gif",
    ".jfif",
    ".jpe",
    ".jpeg",
    ".jpg",
    ".png",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)
_MOST_NAMED = 5
# Part of the fingerprint, so that a change of decoding invalidates the cache.
DECODING = b"upright by EXIF, 16 bits scaled"
LAYOUT = "An image folder contains train/<class>/<image> and test/<class>/<image>."


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """The images of a folder.

    Attributes:
        root: absolute path of the folder.
        class_names: sorted names; the index of a class is its label.
        files: images of each split, in order, as paths relative to `root`.
        fingerprint: changes with the name or state of any image, see `file_state`.
    """

    root: Path
    class_names: tuple[str, ...]
    files: dict[str, tuple[str, ...]]
    fingerprint: str


def scan(path: str) -> ImageFolder:
    """Lists a folder and checks that it can be used for training.

    Args:
        path: the folder.

    Returns:
        Its images.

    Raises:
        UserError: if the folder, a split or a class is missing or empty.
    """
    root = Path(path).expanduser().absolute()
    if not root.is_dir():
        state = "is not a folder" if root.exists() else "does not exist"
        raise UserError(
            f"The image folder {root} {state}. {LAYOUT} Pass an existing "
            "folder as --dataset folder:PATH."
        )
    digest = hashlib.sha256(DECODING)
    left_out: list[str] = []
    classes: dict[str, list[str]] = {}
    files: dict[str, tuple[str, ...]] = {}
    for split in SPLITS:
        if not (root / split).is_dir():
            raise UserError(
                f"The image folder {root} has no folder {split}/. {LAYOUT} It "
                f"contains: {_contents(root)}."
            )
        folders = _folders(root / split)
        found = {folder.name: _images(folder, digest) for folder in folders}
        left_out += _files(root / split)
        for folder in folders:
            left_out += _left_out(folder)
        empty = [name for name, images in found.items() if not images]
        if not found or len(empty) == len(found):
            raise UserError(
                f"{root / split} has no images in class folders. {LAYOUT} It contains: "
                f"{_contents(root / split)}. Image files end in "
                f"{', '.join(SUFFIXES)}."
            )
        if empty:
            raise UserError(
                f"{root / split / empty[0]} has no images. Add images, or "
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
            f"{root / 'train'}, so the network cannot learn it. Add training images "
            f"of it, or remove {root / 'test' / unknown[0]}. Classes in train/: "
            f"{', '.join(classes['train'])}."
        )
    if len(classes["train"]) < 2:
        raise UserError(
            f"{root / 'train'} has one class, {classes['train'][0]!r}; "
            "classification needs at least two. Add a second class folder."
        )
    _warn_of(left_out, [c for c in classes["train"] if c not in classes["test"]], root)
    return ImageFolder(root, tuple(classes["train"]), files, digest.hexdigest())


def _visible(folder: os.PathLike[str]) -> list[os.DirEntry[str]]:
    """Returns the entries of a folder by name, except hidden ones."""
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if not entry.name.startswith(".")]
    return sorted(found, key=lambda entry: entry.name)


def _folders(folder: os.PathLike[str]) -> list[os.DirEntry[str]]:
    """Returns the folders in a folder by name, except hidden ones."""
    return [entry for entry in _visible(folder) if entry.is_dir()]


def _files(folder: os.PathLike[str]) -> list[str]:
    """Returns the sorted paths of the files in a folder, except hidden ones."""
    return [entry.path for entry in _visible(folder) if entry.is_file()]


def _images(folder: os.DirEntry[str], digest: Any) -> list[str]:
    """Returns the sorted names of a class's images; adds their state to `digest`."""
    found = [
        entry
        for entry in _visible(folder)
        if entry.name.lower().endswith(SUFFIXES) and entry.is_file()
    ]
    for entry in found:
        identity = (folder.path, entry.name, *file_state(entry.stat()))
        digest.update(repr(identity).encode())
    return [entry.name for entry in found]


def _left_out(folder: os.PathLike[str]) -> list[str]:
    """Returns the files of a class folder that are nested or have another suffix."""
    found = [path for path in _files(folder) if not path.lower().endswith(SUFFIXES)]
    for nested in _folders(folder):
        for directory, _, files in os.walk(nested.path):
            found += [os.path.join(directory, name) for name in sorted(files)]
    return found


def _warn_of(left_out: list[str], not_in_test: list[str], root: Path) -> None:
    """Warns of files that are not read, and of classes without test images."""
    if left_out:
        names = ", ".join(
            os.path.relpath(path, root) for path in left_out[:_MOST_NAMED]
        )
        more = len(left_out) - _MOST_NAMED
        print_warning(
            f"these files in {root} are not read: {names}"
            f"{f' and {more} more' if more > 0 else ''}. Images must be directly in "
            f"the class folders and end in {', '.join(SUFFIXES)}."
        )
    if not_in_test:
        print_warning(
            f"{root / 'test'} has no images of these classes: "
            f"{', '.join(not_in_test[:_MOST_NAMED])}"
            f"{' ...' if len(not_in_test) > _MOST_NAMED else ''}. The test accuracy "
            "does not cover them."
        )


def _contents(folder: Path) -> str:
    names = sorted(os.listdir(folder))
    more = len(names) - _MOST_NAMED
    shown = ", ".join(names[:_MOST_NAMED])
    return f"{shown} and {more} more" if more > 0 else shown or "nothing"
