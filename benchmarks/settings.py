"""The sizes of all measurements: full for a GPU, miniature for a CPU."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from train import files
from train.errors import UserError

_FILE = "settings.json"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The size of each part.

    Networks are strings in the format of `train.benchmark.workload.parse`.
    """

    # (a) Network on which every optimizer is tried; network and optimizers with which
    # every strategy is tried; all networks, with their image sizes; optimizers to
    # profile.
    optimizer_network: str
    strategy_network: str
    strategy_optimizers: tuple[str, ...]
    networks: tuple[tuple[str, int], ...]
    profiled: tuple[str, ...]
    dtypes: tuple[str, ...]
    # Whether strategies, networks and optimizers have cases of their own, each with
    # every dtype. If not, there is one case per optimizer: see `smoke.cases`.
    separate_cases: bool
    chunk_steps: int
    # (b) Networks, image sizes, dtypes and rounds. The first entry also gives batch,
    # image size and rounds of (d).
    steps: tuple[tuple[str, int, str, int], ...]
    # (c) to (f)
    resnet20: tuple[str, ...]  # Options.
    dtype: str  # In (c), (d), (f) and the profiles of (a); (e) is in float32.
    epochs: int
    table6_rows: tuple[int, ...]  # Empty: all.
    table7_rows: tuple[int, ...]
    table_seeds: tuple[int, ...]  # In order; each reuses earlier runs.
    rates: dict[str, Any]  # Options of `robustness`.
    num_train: int  # Training images, for the estimates.


FULL = Sizes(
    optimizer_network="custom_cnn@128",
    strategy_network="resnet20@128",
    strategy_optimizers=("insgd-l2", "lms-newton"),
    networks=(
        ("custom_cnn@128", 32),
        ("resnet20@128", 32),
        ("wrn18@128", 32),
        ("vit@128", 32),
        ("mobilenet_v3_large:stem=cifar@128", 32),
        ("mobilenet_v3_small:stem=cifar@128", 32),
        ("resnet50@64", 224),
    ),
    profiled=("sgd", "insgd-l2", "lms-newton"),
    dtypes=("bfloat16", "float32"),
    separate_cases=True,
    chunk_steps=10,
    steps=(
        ("resnet20@128", 32, "bfloat16", 30),
        ("resnet50@256", 224, "bfloat16", 10),
        ("vit@256", 32, "bfloat16", 30),
        ("resnet20@128", 32, "float32", 30),
        ("resnet20@512", 32, "bfloat16", 30),
    ),
    resnet20=(),
    dtype="bfloat16",
    epochs=200,
    table6_rows=(),
    table7_rows=(1, 2, 3),
    table_seeds=(1, 3, 7),
    rates={
        "epochs": 10,
        "per_decade": 1,
        "gap": 0.5,
        "optimizers": (
            "sgd",
            "sgd+polyak@1",
            "insgd-l2",
            "insgd-l2+polyak@1",
            "insgd-l2+layer+log1p",
            "insgd-l2+layer+log1p+polyak@1",
            "lms-newton",
            "adamw",
            "adam",
            "lars",
            "momo",
            "prodigy",
            "dadapt-adamw",
        ),
    },
    num_train=50_000,
)

_TINY_RESNET = "stage_sizes=1x1,width=4"
_TINY_VIT = "width=16,depth=1,heads=2,mlp_width=16"
MINIATURE = Sizes(
    optimizer_network="custom_cnn@4",
    strategy_network=f"resnet20:{_TINY_RESNET}@4",
    strategy_optimizers=("insgd-l2",),
    # Without MobileNetV3, which takes a minute to compile at any width.
    networks=(
        ("custom_cnn@4", 8),
        (f"resnet20:{_TINY_RESNET}@4", 8),
        (f"wrn18:{_TINY_RESNET}@4", 8),
        (f"vit:{_TINY_VIT}@4", 8),
        (f"resnet50:{_TINY_RESNET}@4", 32),
    ),
    profiled=("insgd-l2",),
    dtypes=("bfloat16", "float32"),
    separate_cases=False,
    chunk_steps=1,
    steps=(("custom_cnn@4", 8, "bfloat16", 2),),
    resnet20=("stage_sizes=1x1", "width=4"),
    dtype="bfloat16",
    epochs=2,
    table6_rows=(3,),
    table7_rows=(1,),
    table_seeds=(1,),
    rates={
        "epochs": 1,
        "decades": 1,
        "per_decade": 1,
        "optimizers": ("sgd", "insgd-l2+polyak"),
    },
    num_train=128,
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a folder of results, the same in every command that resumes it.

    Attributes:
        miniature: whether the sizes are `MINIATURE`'s.
        dataset: dataset of (c) to (f), as in `python -m train --dataset`, or None.
    """

    miniature: bool
    dataset: str | None

    @property
    def sizes(self) -> Sizes:
        """Returns the size of each part."""
        return MINIATURE if self.miniature else FULL


def keep(folder: Path, settings: Settings) -> Settings:
    """Compares settings with those of a folder of results, if any, and writes them.

    Args:
        folder: folder of the results.
        settings: settings of this command. Without a dataset, the recorded one is used.

    Returns:
        The settings to use.

    Raises:
        UserError: if the folder has other settings.
    """
    recorded = load(folder)
    if recorded is not None:
        if settings.dataset is None or recorded.dataset is None:
            dataset = settings.dataset or recorded.dataset
            settings = dataclasses.replace(settings, dataset=dataset)
            recorded = dataclasses.replace(recorded, dataset=dataset)
        if recorded != settings:
            raise UserError(
                f"{folder} was started with {recorded}, not {settings}. Pass the same "
                "options, or another --out."
            )
    content = json.dumps(dataclasses.asdict(settings), indent=2) + "\n"
    files.write(folder / _FILE, content.encode())
    return settings


def load(folder: Path) -> Settings | None:
    """The settings of a folder of results; None if it has none."""
    try:
        values = json.loads(files.read(folder / _FILE))
    except FileNotFoundError:
        return None
    return Settings(**values)
