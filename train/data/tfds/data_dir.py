"""Finds datasets that tensorflow-datasets prepared on this machine."""

import json
import os
from pathlib import Path

from train.errors import UserError

INFO = "dataset_info.json"


def data_dir() -> Path:
    """Returns the data directory of tensorflow-datasets."""
    path = os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets"
    return Path(path).expanduser().absolute()


def find(name: str, remedy: str) -> Path:
    """Finds the newest version of a dataset that can be read without TensorFlow.

    Args:
        name: name of the dataset.
        remedy: remedy for the error message, in full sentences.

    Returns:
        The folder of the version.

    Raises:
        UserError: if it is not prepared, or not as array_record files.
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
            f"{folder} has {file_format} files, which only TensorFlow can read. Move "
            f"the folder away and run: python -m train prepare {name}"
        )
    raise UserError(
        f"{name} is not prepared: {place} does not contain it. {remedy} Set "
        f"TFDS_DATA_DIR to use another directory than {data_dir()}."
    )


def _file_format(info: Path) -> str | None:
    try:
        value = json.loads(info.read_bytes())
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError(
            f"{info} is damaged. Move {info.parent} away and prepare the dataset again."
        )
    return value.get("fileFormat")
