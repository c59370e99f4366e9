"""A dataset of the user's own, checked before anything is trained on it."""

import dataclasses

import numpy as np

from train import own_code
from train.data.types import Dataset, ImageDataset, Split, StreamedDataset
from train.errors import UserError


def load(reference: str) -> Dataset:
    """Calls the function that a reference names, and checks what it returns.

    Args:
        reference: MODULE:NAME of a function without arguments.

    Returns:
        The dataset, with labels of dtype int32. A `StreamedDataset` is returned as it
        is, unchecked.

    Raises:
        UserError: if there is no such function, it needs arguments, or what it returns
            is not a usable dataset.
        OwnCodeError: if it raises an exception.
    """
    function = own_code.load(reference)
    needed = [
        name
        for name, each in own_code.parameters(reference).items()
        if each.default is each.empty
        and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    if needed:
        raise UserError(
            f"{reference} must be a function without arguments that returns a "
            f"train.ImageDataset, but needs {' and '.join(needed)}."
        )
    with own_code.running(f"Loading the dataset {reference}"):
        dataset = function()
    if isinstance(dataset, StreamedDataset):
        return dataset
    if not isinstance(dataset, ImageDataset):
        raise UserError(
            f"{reference} must return a train.ImageDataset, but returned an object of "
            f"type {type(dataset).__name__}."
        )
    problem = _problem(dataset)
    if problem is not None:
        raise UserError(f"The dataset of {reference} cannot be used: {problem}.")
    return dataclasses.replace(
        dataset, train=_with_int32(dataset.train), test=_with_int32(dataset.test)
    )


def _with_int32(split: Split) -> Split:
    images, labels = split
    return Split(images, labels.astype(np.int32))


def _problem(dataset: ImageDataset) -> str | None:
    """Describes what is wrong with a dataset; returns None if nothing is."""
    num_classes = len(dataset.class_names)
    if num_classes < 2 or not all(isinstance(n, str) for n in dataset.class_names):
        return f"class_names must be two or more strings, got {dataset.class_names}"
    if len(set(dataset.class_names)) < num_classes:
        return f"class_names must all be different, got {dataset.class_names}"
    for name in ("train", "test"):
        images, labels = getattr(dataset, name)
        if not (
            isinstance(images, np.ndarray)
            and images.dtype == np.uint8
            and images.ndim == 4
            and images.size
        ):
            return (
                f"the {name} images must be a NumPy array, uint8 of shape (samples, "
                f"height, width, channels), got {_described(images)}"
            )
        if not (
            isinstance(labels, np.ndarray)
            and np.issubdtype(labels.dtype, np.integer)
            and labels.shape == images.shape[:1]
        ):
            return (
                f"the {name} labels must be a NumPy array of {len(images)} integers, "
                f"one for each image, got {_described(labels)}"
            )
        if labels.min() < 0 or labels.max() >= num_classes:
            return (
                f"the {name} labels must be from 0 to {num_classes - 1}, as there are "
                f"{num_classes} class_names, got {labels.min()} to {labels.max()}"
            )
    train, test = dataset.train[0].shape[1:], dataset.test[0].shape[1:]
    if train != test:
        return f"the train images are of shape {train}, the test images of {test}"
    mean, std, augmentation, _ = dataset.preprocessing
    padding, most = augmentation.padding, min(train[:2]) - 1
    if not (isinstance(padding, int | np.integer) and padding >= 0):
        return (
            "the padding of its augmentation must be a whole number, at least 0, got "
            f"{padding!r}"
        )
    if augmentation.reflect and padding > most:
        return (
            f"its augmentation can reflect at most {most} pixels, got a padding of "
            f"{padding}"
        )
    if not (
        len(mean) == len(std) == train[-1]
        and np.isfinite([*mean, *std]).all()
        and min(std) > 0
    ):
        return (
            "its preprocessing must have a mean and a standard deviation above 0 for "
            f"each of {train[-1]} channels, got {tuple(mean)} and {tuple(std)}"
        )
    return None


def _described(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return f"an object of type {type(value).__name__}"
