"""Opening prepared data sets without running code that their metadata names.

tensorflow-datasets imports the module of any class named in `features.json`, also one
in the current folder. Only the classes of image classification are let through.
"""

import json
from pathlib import Path
from typing import Any

from train.errors import UserError

FEATURES = "features.json"
_FEATURES_DICT = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
# The class of a feature, and where its definition stands.
_KNOWN = {
    "tensorflow_datasets.core.features.image_feature.Image": "image",
    "tensorflow_datasets.core.features.class_label_feature.ClassLabel": "classLabel",
    "tensorflow_datasets.core.features.text_feature.Text": "text",
}
# What else a feature may have: text and numbers.
_DOCUMENTATION = {"pythonClassName", "description", "valueRange"}


def open_split(folder: Path, split: str) -> Any:
    """Opens a split of a data set at random access, with images left encoded.

    Args:
        folder: the data set's version.
        split: its name.

    Returns:
        The data source: `len`, and by index examples as dicts.

    Raises:
        UserError: see `check_features`.
    """
    check_features(folder)
    import tensorflow_datasets as tfds  # Takes seconds.

    return tfds.builder_from_directory(folder).as_data_source(
        split, decoders={"image": tfds.decode.SkipDecoding()}
    )


def check_features(folder: Path) -> None:
    """Raises a UserError unless a data set has known features alone."""
    path = folder / FEATURES
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read: {error}. Move {folder} away, and prepare the data "
            "set again."
        ) from error
    problem = _problem(value)
    if problem is not None:
        raise UserError(
            f"{path} {problem}, which is not read: only a dictionary of images, labels "
            f"and texts is. Move {folder} away, and prepare the data set again."
        )


def _problem(value: Any) -> str | None:
    """What is not known in a definition of features; None if all is."""
    if not isinstance(value, dict) or value.keys() - _DOCUMENTATION != {"featuresDict"}:
        return "holds no dictionary of features"
    if value.get("pythonClassName") != _FEATURES_DICT:
        return f"names the class {value.get('pythonClassName')!r}"
    inner = value["featuresDict"]
    features = inner.get("features") if isinstance(inner, dict) else None
    if not isinstance(features, dict) or inner.keys() != {"features"}:
        return "holds no dictionary of features"
    for name, feature in features.items():
        if not isinstance(feature, dict):
            return f"has a feature {name!r} that is no object"
        named = feature.get("pythonClassName")
        if not isinstance(named, str) or named not in _KNOWN:
            return f"names the class {named!r}"
        unknown = feature.keys() - _DOCUMENTATION - {_KNOWN[named]}
        if unknown:
            return f"has {min(unknown)!r} in its feature {name!r}"
    return None
