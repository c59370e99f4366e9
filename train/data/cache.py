"""Decoded arrays on disk, used again only if they are what was written."""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

_ARRAYS = "arrays.npz"
_RECORD = "record.json"


def write(folder: Path, arrays: dict[str, np.ndarray], record: dict[str, Any]) -> None:
    """Writes arrays, and a record that says what they are.

    Args:
        folder: where to; what was there is replaced.
        arrays: by name.
        record: anything JSON can hold; `read` compares its "fingerprint".
    """
    folder.mkdir(parents=True, exist_ok=True)
    # A reader in another process sees the old files or the new ones, never a part;
    # old arrays under a new record fail the checksum.
    # Not mkstemp: what stops the process removes temporary folders alone.
    with tempfile.TemporaryDirectory(dir=folder, prefix="partial-") as partial:
        made = Path(partial)
        with (made / _ARRAYS).open("wb") as file:
            # For all NumPy's types know, one may be named allow_pickle.
            np.savez(file, **arrays)  # type: ignore[arg-type]
        checksum = _checksum(made / _ARRAYS)
        os.replace(made / _ARRAYS, folder / _ARRAYS)
        with (made / _RECORD).open("w") as file:
            json.dump({"sha256": checksum, **record}, file)
        os.replace(made / _RECORD, folder / _RECORD)


def read(
    folder: Path, fingerprint: str
) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Reads what `write` wrote.

    Args:
        folder: where from.
        fingerprint: of the source the arrays must have been made from.

    Returns:
        Arrays and record; None if there are none, they were made from another source,
        or they are damaged.
    """
    try:
        record = json.loads((folder / _RECORD).read_text())
        if record["fingerprint"] != fingerprint:
            return None
        if record["sha256"] != _checksum(folder / _ARRAYS):
            return None
        with np.load(folder / _ARRAYS) as arrays:
            return dict(arrays), record
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
