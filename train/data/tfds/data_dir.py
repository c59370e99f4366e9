"""Where tensorflow-datasets keeps its data, and what is prepared there.

Nothing here reaches for the network: what is not on this machine is an error at once.
"""

import json
import os
from pathlib import Path

from train.errors import UserError

INFO = "dataset_info.json"


def data_dir() -> Path:
    """Where tensorflow-datasets keeps its data."""
    path = os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets"
    return Path(path).expanduser().absolute()


def find(name: str, remedy: str) -> Path:
    """The newest prepared version of a data set that can be read without TensorFlow.

    Args:
        name: the data set's.
        remedy: what to do if there is none, in whole sentences.

    Returns:
        The version's folder.

    Raises:
        UserError: if it is not prepared, or not in array_record files.
    """
    place = data_dir() / name
    versions = sorted(
        place.glob(f"*/{INFO}"),
        key=lambda path: [int(n) for n in path.parent.name.split(".") if n.isdigit()],
    )
    formats = {}
    for info in reversed(versions):
        file_format = _file_format(info)
        if file_format == "array_record":
            return info.parent
        formats[info.parent] = file_format
    if formats:
        folder, file_format = next(iter(formats.items()))
        raise UserError(
            f"{folder} holds {file_format} files, which only TensorFlow reads. Move the "
            f"folder away, and run: python -m train prepare {name}"
        )
    raise UserError(
        f"{name} is not prepared: {place} does not hold it. {remedy} Set TFDS_DATA_DIR "
        f"to use another directory than {data_dir()}."
    )


def _file_format(info: Path) -> str | None:
    try:
        value = json.loads(info.read_bytes())
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError(
            f"{info} is damaged. Move {info.parent} away, and prepare the data set "
            "again."
        )
    return value.get("fileFormat")
