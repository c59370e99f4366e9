"""The application, `python -m train`, and the names that your own scripts can import.

`load_run` loads the trained network of a run folder. A dataset of your own is an
`ImageDataset` of two `Split`s and a `Preprocessing`, which may have an `Augmentation`;
an optimizer that needs statistics of the layers' inputs is an `Optimizer`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.data.images.augment import Augmentation as Augmentation
    from train.data.types import ImageDataset as ImageDataset
    from train.data.types import Preprocessing as Preprocessing
    from train.data.types import Split as Split
    from train.inference.load import TrainedModel as TrainedModel
    from train.inference.load import load_run as load_run
    from train.training.optimizers.base import Optimizer as Optimizer

_PUBLIC = {
    "load_run": "train.inference.load",
    "TrainedModel": "train.inference.load",
    "ImageDataset": "train.data.types",
    "Split": "train.data.types",
    "Preprocessing": "train.data.types",
    "Augmentation": "train.data.images.augment",
    "Optimizer": "train.training.optimizers.base",
}


if not TYPE_CHECKING:  # Otherwise any name would pass the type checker.

    def __getattr__(name: str) -> Any:
        # Imported lazily, so that `python -m train` can handle Ctrl-C before slow
        # imports.
        import importlib

        if name not in _PUBLIC:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
