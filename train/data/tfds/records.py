"""Encoded images and their labels, read at random from array_record files.

Worker processes import this module: it needs no JAX, and none of its records is opened
before it is read.
"""

import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from train.data.tfds import reader


class Record(NamedTuple):
    """One image."""

    image: bytes  # As it was encoded.
    label: int


class Records:
    """A split of a data set that tensorflow-datasets can read.

    Args:
        folder: the data set's version.
        split: its name.
        length: how many records it has.
    """

    def __init__(self, folder: Path, split: str, length: int):
        self.folder = folder
        self.split = split
        self._length = length

    def __len__(self) -> int:
        return self._length

    def read(self, indices: Sequence[int]) -> list[Record]:
        """The records at some places."""
        examples = self._source.__getitems__([int(index) for index in indices])
        return [Record(example["image"], example["label"]) for example in examples]

    @functools.cached_property
    def _source(self) -> Any:
        _allow_many_files()
        return reader.open_split(self.folder, self.split)

    def __getstate__(self) -> dict[str, Any]:
        # Open files cannot be sent to another process, which opens its own.
        return {name: it for name, it in vars(self).items() if name != "_source"}


def _allow_many_files() -> None:
    """Raises the limit of open files: a data set may have a thousand, all kept open."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource  # Not on Windows.

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
