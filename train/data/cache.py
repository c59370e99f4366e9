"""Cache of decoded arrays on disk, verified by checksum when it is read."""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from train import files

_ARRAYS = "arrays.npz"
_RECORD = "record.json"


def write(folder: Path, arrays: dict[str, np.ndarray], record: dict[str, Any]) -> None:
    """Writes arrays and a record that describes them.

    Args:
        folder: the folder to write; earlier contents are replaced.
        arrays: arrays by name.
        record: anything JSON can hold; `read` compares its "fingerprint".
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Other processes read the old files or the new ones, never part of one; new arrays
    # with an old record fail the checksum. Interrupts clean up only temporary folders,
    # hence no mkstemp.
    with (
        files.naming(folder),
        tempfile.TemporaryDirectory(dir=folder, prefix="partial-") as partial,
    ):
        made = Path(partial)
        with (made / _ARRAYS).open("wb") as file:
            # A type checker cannot rule out an array named allow_pickle, which is also
            # the name of a bool argument.
            np.savez(file, **arrays)  # type: ignore[arg-type]
        checksum = sha256_of(made / _ARRAYS)
        os.replace(made / _ARRAYS, folder / _ARRAYS)
        with (made / _RECORD).open("w") as file:
            json.dump({"sha256": checksum, **record}, file)
        os.replace(made / _RECORD, folder / _RECORD)


def read(
    folder: Path, fingerprint: str
) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Reads the arrays and the record that `write` wrote.

    Args:
        folder: the folder to read.
        fingerprint: fingerprint of the source that the arrays must come from.

    Returns:
        The arrays and the record; None if they are missing, damaged or made from
        another source.
    """
    try:
        record = json.loads((folder / _RECORD).read_text())
        if record["fingerprint"] != fingerprint:
            return None
        # Opened only once, since another process may replace the file in between.
        with (folder / _ARRAYS).open("rb") as file:
            if record["sha256"] != hashlib.file_digest(file, "sha256").hexdigest():
                return None
            file.seek(0)
            with np.load(file) as arrays:
                return dict(arrays), record
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def file_state(status: os.stat_result) -> tuple[int, ...]:
    """Returns a state that changes when a file is written, replaced or renamed.

    Size and modification time do not suffice, because copying and unpacking preserve
    them. Programs cannot set the change time, and a file that is moved over another one
    has a different inode.
    """
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file's contents, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
