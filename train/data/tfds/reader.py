"""Finds and opens prepared datasets, without running code that their metadata names.

tensorflow-datasets imports the module of any class named in `features.json`, even from
the current folder. Only the feature classes of images, labels and text are allowed.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train.errors import UserError

INFO = "dataset_info.json"
FEATURES = "features.json"
_FEATURES_DICT = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
# Class of a feature -> key of its definition.
_KNOWN = {
    "tensorflow_datasets.core.features.image_feature.Image": "image",
    "tensorflow_datasets.core.features.class_label_feature.ClassLabel": "classLabel",
    "tensorflow_datasets.core.features.text_feature.Text": "text",
}
# Other keys of a feature, with text and numbers as values.
_OTHER_KEYS = {"pythonClassName", "description", "valueRange"}


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
        f"TFDS_DATA_DIR to use a directory other than {data_dir()}."
    )


def _file_format(info: Path) -> str:
    try:
        value = json.loads(info.read_bytes())
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError(
            f"{info} is damaged. Move {info.parent} away and prepare the dataset again."
        )
    return value.get("fileFormat") or "tfrecord"  # As tensorflow-datasets does.


def open_split(folder: Path, split: str) -> Any:
    """Opens a split of a dataset for random access; images stay encoded.

    Args:
        folder: folder of the dataset's version.
        split: name of the split.

    Returns:
        The data source, with examples as dicts.

    Raises:
        UserError: if it is damaged, or has unknown features (see `check_features`).
    """
    check_features(folder)
    import tensorflow_datasets as tfds  # Slow to import.

    with naming_damage(folder):
        return tfds.builder_from_directory(folder).as_data_source(
            split, decoders={"image": tfds.decode.SkipDecoding()}
        )


@contextlib.contextmanager
def naming_damage(folder: Path) -> Iterator[None]:
    """Turns errors that a damaged dataset causes within this context into a UserError.

    tensorflow-datasets, array_record and Pillow raise many types.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            f"{folder} is damaged ({reason[:200]}). Move it away and prepare the "
            "dataset again."
        ) from error


def check_features(folder: Path) -> None:
    """Raises a UserError unless a dataset has only known features."""
    path = folder / FEATURES
    try:
        value = json.loads(path.read_bytes(), object_pairs_hook=_without_duplicates)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read: {error}. Move {folder} away and prepare the "
            "dataset again."
        ) from error
    problem = _problem(value)
    if problem is not None:
        raise UserError(
            f"{path} {problem}. Only dictionaries of Image, ClassLabel and Text "
            f"features are supported. Move {folder} away and prepare the dataset again."
        )


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuses duplicate keys, since another parser may use the other value."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"it has {name!r} twice")
        found[name] = value
    return found


def _problem(value: Any) -> str | None:
    """Describes what is not supported in a definition of features, if anything."""
    if not isinstance(value, dict) or value.keys() - _OTHER_KEYS != {"featuresDict"}:
        return "has no dictionary of features"
    if value.get("pythonClassName") != _FEATURES_DICT:
        return f"uses the class {value.get('pythonClassName')!r}"
    inner = value["featuresDict"]
    features = inner.get("features") if isinstance(inner, dict) else None
    if not isinstance(features, dict) or inner.keys() != {"features"}:
        return "has no dictionary of features"
    for name, feature in features.items():
        if not isinstance(feature, dict):
            return f"has a feature {name!r} that is not an object"
        named = feature.get("pythonClassName")
        if not isinstance(named, str) or named not in _KNOWN:
            return f"uses the feature class {named!r}"
        unknown = feature.keys() - _OTHER_KEYS - {_KNOWN[named]}
        if unknown:
            return f"has {min(unknown)!r} in its feature {name!r}"
    return None
