"""Datasets by name."""

from pathlib import Path

from train import own_code
from train.data.types import Dataset
from train.errors import did_you_mean

# The names without a path.
_PLAIN = ("digits", "cifar10", "cifar100", "imagenet2012")
_FOLDER = "folder"
NAMES = (*_PLAIN, f"{_FOLDER}:PATH", own_code.FORM)


def check_name(name: str) -> None:
    """Raises a ValueError with the valid names unless `name` is one."""
    kind, _, path = name.partition(":")
    known = bool(path) if kind == _FOLDER else name in _PLAIN
    if not known and not _is_reference(name):
        raise ValueError(
            f"unknown dataset {name!r}: expected one of {', '.join(NAMES)}."
            f"{did_you_mean(name, (*_PLAIN, f'{_FOLDER}:PATH'))}"
        )


def _is_reference(name: str) -> bool:
    """Whether a name is MODULE:NAME and not that of a built-in dataset."""
    kind = name.partition(":")[0]
    return kind not in (*_PLAIN, _FOLDER) and own_code.is_reference(name)


def absolute(name: str) -> str:
    """Returns the name with its path made absolute."""
    kind, _, path = name.partition(":")
    if kind != _FOLDER:
        return name
    return f"{kind}:{Path(path).expanduser().absolute()}"


def can_resize(name: str) -> bool:
    """Whether the images of a dataset can be resized to an `image_size`."""
    return name.partition(":")[0] == _FOLDER


def short_name(name: str) -> str:
    """A name for files, without a path."""
    kind, _, argument = name.partition(":")
    if _is_reference(name):
        return f"{kind.rpartition('.')[2]}-{argument}"
    return Path(argument).name or kind


def load(
    name: str,
    cache_dir: Path,
    *,
    skip_corrupt: bool = False,
    image_size: int | None = None,
) -> Dataset:
    """Loads a dataset.

    Args:
        name: one of `NAMES`; MODULE:NAME names a function of the user's own.
        cache_dir: folder for decoded images.
        skip_corrupt: skip images of a folder that cannot be decoded, and list them.
        image_size: side to which images of a folder are resized and cropped. Default:
            unchanged; all must have one size.

    Returns:
        The dataset.

    Raises:
        ValueError: if the name is unknown.
        train.errors.UserError: if the data cannot be used.
        train.errors.OwnCodeError: if the user's function raises an exception.
    """
    check_name(name)
    kind, _, path = name.partition(":")
    # Imported when used: scikit-learn, for example, takes a second.
    match kind:
        case "digits":
            from train.data import digits

            return digits.load()
        case "cifar10" | "cifar100":
            from train.data import cifar

            return cifar.load(cifar.ALL[kind], cache_dir)
        case "imagenet2012":
            from train.data import imagenet

            return imagenet.load()
        case "folder":
            from train.data import folder

            return folder.load(
                path, cache_dir, skip_corrupt=skip_corrupt, image_size=image_size
            )
    from train.data import own

    return own.load(name)
