"""Random access to encoded images and labels in array_record files.

Worker processes import this module, so it does not import JAX. Files are opened when
they are first read.
"""

import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from train.data.tfds import reader


class Record(NamedTuple):
    """One encoded image and its label."""

    image: bytes  # As stored.
    label: int


class Records:
    """A split of a dataset in the format of tensorflow-datasets.

    Args:
        folder: folder of the dataset's version.
        split: name of the split.
        length: number of records.
    """

    def __init__(self, folder: Path, split: str, length: int):
        self.folder = folder
        self.split = split
        self._length = length

    def __len__(self) -> int:
        return self._length

    def read(self, indices: Sequence[int]) -> list[Record]:
        """Reads the records with these indices."""
        with reader.naming_damage(self.folder):
            examples = self._source.__getitems__([int(index) for index in indices])
            return [Record(example["image"], example["label"]) for example in examples]

    def describe(self, index: int) -> str:
        """Names the image with this index, for messages."""
        return f"Image {index} of the split {self.split} in {self.folder}"

    @functools.cached_property
    def _source(self) -> Any:
        _allow_many_files()
        return reader.open_split(self.folder, self.split)

    def __getstate__(self) -> dict[str, Any]:
        # Open files cannot be pickled; another process opens its own.
        return {name: it for name, it in vars(self).items() if name != "_source"}


def _allow_many_files() -> None:
    """Raises the limit on open files, since a dataset keeps up to a thousand open."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource  # Not on Windows.

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
