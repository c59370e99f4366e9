"""`python -m train benchmark`: time and memory of INSGD's step compared with SGD's."""

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Literal

import tyro

import models
from train import files, strict_json
from train.benchmark import measure, workload
from train.benchmark import report as benchmark_report
from train.benchmark.workload import Workload
from train.config import MOST_PIXELS, check_numbers, option
from train.errors import UserError
from train.training import optimizers

# Three kinds of networks, small enough for two CPU cores.
DEFAULT_NETWORKS = ("custom_cnn@128", "resnet20@32", "vit:width=128,depth=4@32")

_MOST_ROUNDS = 1_000_000


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """Measure time and memory of a step of SGD and another optimizer, such as INSGD."""

    models: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="MODEL[:OPTION=VALUE,...][@BATCH] ...")
    ] = DEFAULT_NETWORKS
    """Networks with options and batch sizes, such as resnet20:width=8@32."""
    batch_sizes: tuple[int, ...] = (128,)
    """Batch sizes of networks given without one."""
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32",)
    """Compute dtypes; every network is measured with each."""
    optimizer: Annotated[str, tyro.conf.arg(metavar="NAME")] = measure.DEFAULT_OPTIMIZER
    """Optimizer to compare with SGD; python -m train run --help lists the names."""
    image_size: int = 32
    """Height and width of the random images, in pixels."""
    rounds: int = 30
    """Rounds of timing; each times every program once."""
    axis: Literal["width", "depth", "batch"] | None = None
    """Vary this property of one network, resnet20@32 unless --models names another."""
    values: tuple[int, ...] = ()
    """Axis values. Default: width 8 16 32, depth 1 2 3 (blocks), batch 8 32 128."""
    output_dir: Path | None = None
    """Folder of benchmark.json and benchmark.md. Default: a new runs/benchmark-DATE."""

    def __post_init__(self) -> None:
        check_numbers(self, image_size=(1, MOST_PIXELS), rounds=(1, _MOST_ROUNDS))
        for name in ("batch_sizes", "values"):
            if any(value < 1 for value in getattr(self, name)):
                raise ValueError(
                    f"{option(name)} must all be at least 1, got {getattr(self, name)}"
                )
        if self.values and self.axis is None:
            raise ValueError("--values needs --axis")
        optimizers.check_name(self.optimizer)
        if self.optimizer == "sgd":
            raise ValueError("--optimizer is compared with sgd: pass another one")
        for name in ("models", "dtypes", "batch_sizes"):
            values = getattr(self, name)
            if self.axis and len(values) > 1 and values != getattr(type(self), name):
                raise ValueError(
                    f"--axis varies one network: {option(name)} takes one value with "
                    f"it, got {' '.join(map(str, values))}"
                )
        if not (self.models and self.batch_sizes and self.dtypes):
            raise ValueError("--models, --batch-sizes and --dtypes need a value each")
        _ = self.workloads

    @property
    def workloads(self) -> list[Workload]:
        """The workloads in the order in which they are measured."""
        texts = self.models
        if self.axis is not None and texts == DEFAULT_NETWORKS:
            texts = ("resnet20@32",)
        listed = [
            one
            for text in texts
            for dtype in self.dtypes
            for one in workload.parse(text, self.batch_sizes, dtype)
        ]
        if self.axis is None:
            return listed
        return workload.along(self.axis, listed[0], self.values)


def benchmark(config: BenchmarkConfig) -> int:
    """Measures the workloads, writing the results after each, and prints them."""
    directory = config.output_dir or Path(
        "runs", time.strftime("benchmark-%Y%m%d-%H%M%S")
    )
    directory = directory.expanduser().absolute()
    table, record = directory / "benchmark.md", directory / "benchmark.json"
    for path in (table, record):
        if path.exists():
            raise UserError(
                f"{path} already exists and was left unchanged. Use another "
                "--output-dir."
            )
    directory.mkdir(parents=True, exist_ok=True)
    costs = []
    for one in config.workloads:
        print(f"{one.network}, batch {one.batch_size}, {one.dtype} ...", flush=True)
        try:
            costs.append(
                measure.measure(one, config.image_size, config.rounds, config.optimizer)
            )
        except models.NetworkError as error:
            raise UserError(
                f"{one.network} on images of {config.image_size}x{config.image_size} "
                f"pixels: {error}"
            ) from error
        # Written after each workload, to keep the results of a benchmark that is
        # stopped.
        found = benchmark_report.to_json(costs, config.image_size, config.rounds)
        files.write(record, strict_json.encode(found))
        files.write(table, benchmark_report.to_markdown(costs).encode())
    print(f"\n{table.read_text()}\nIn {directory}: {record.name}, {table.name}")
    return 0
