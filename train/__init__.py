"""The application, `python -m train`, and what scripts of one's own use of it.

`load_run` gives the trained network of a run folder.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.inference.load import TrainedModel as TrainedModel
    from train.inference.load import load_run as load_run

_PUBLIC = {
    "load_run": "train.inference.load",
    "TrainedModel": "train.inference.load",
}


# Imported when used: `python -m train` handles Ctrl-C before anything takes seconds.
def __getattr__(name: str) -> Any:
    import importlib

    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
