"""A step of our SGD and INSGD beside one of PyTorch's SGD with torch.compile.

python docs/examples/benchmark_pytorch.py --batch-size 128

ResNet-20 on one batch of random 32x32 images that lies on the device, in one process,
interleaved in another random order each round; bfloat16 on a GPU, where PyTorch is
tried with CUDA graphs too, float32 on a CPU, where it runs eagerly if torch.compile
fails.
Prints a Markdown table of medians with quartiles and of ratios to the faster PyTorch
step with their 95 % intervals, and writes them with the environment as JSON.
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# JAX would take most of a GPU's memory at its first use; PyTorch needs room beside it.
os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
sys.path.insert(0, str(Path(__file__).parents[2]))  # The application's folder.

import jax
import numpy as np

from train import provenance
from train.benchmark import measure as step_cost
from train.benchmark import timing
from train.benchmark.workload import Workload

try:
    import torch
    from torch import nn
except ImportError as error:
    sys.exit(f"{error}: this needs PyTorch, on a GPU its CUDA build: pip install torch")

Program = Callable[[int], None]  # Runs as often as it is told, and waits.
NUM_PARAMETERS = 272_474  # Of models.resnet20().


def conv_norm(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class ResidualBlock(nn.Module):
    """As `models.resnet.ResidualBlock` with shortcut="projection"."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        first = conv_norm(inputs, outputs, 3, stride)
        second = conv_norm(outputs, outputs, 3)
        self.residual = nn.Sequential(first, nn.ReLU(), second)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = conv_norm(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.shortcut(x) + self.residual(x))


def resnet20() -> nn.Sequential:
    """As `models.resnet20()`."""
    blocks = [
        ResidualBlock(inputs, outputs, stride)
        for inputs, outputs, first_stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        for inputs, stride in ((inputs, first_stride), (outputs, 1), (outputs, 1))
    ]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    model = nn.Sequential(conv_norm(3, 16, 3), nn.ReLU(), *blocks, *head)
    found = sum(parameter.numel() for parameter in model.parameters())
    assert found == NUM_PARAMETERS, f"{found} parameters instead of {NUM_PARAMETERS}"
    return model


def torch_program(
    images: np.ndarray, labels: np.ndarray, dtype: str, mode: str | None, calls: int
) -> Program:
    """Takes `calls` steps each time it is told to; `mode` is torch.compile's."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = resnet20().to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4, fused=True
    )
    x = torch.tensor(images, device=device).permute(0, 3, 1, 2)
    y = torch.tensor(labels, device=device, dtype=torch.long)

    def loss_fn(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            return nn.functional.cross_entropy(model(x), y)

    if mode is not None:
        loss_fn = torch.compile(loss_fn, mode=mode)

    def run(times: int) -> None:
        for _ in range(times * calls):
            loss_fn(x, y).backward()
            optimizer.step()
            optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    run(1)  # Compiles.
    return run


def torch_programs(
    images: np.ndarray, labels: np.ndarray, dtype: str, calls: int
) -> dict[str, Program]:
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")  # TensorFloat-32, as JAX has it.
    modes = {"torch.compile": "default"}
    if torch.cuda.is_available():
        modes["torch.compile with CUDA graphs"] = "reduce-overhead"

    def programs(modes: dict[str, str | None]) -> dict[str, Program]:
        return {
            f"PyTorch SGD, {name}": torch_program(images, labels, dtype, mode, calls)
            for name, mode in modes.items()
        }

    try:
        return programs(modes)
    except Exception as error:  # Of many types; there may be no C++ compiler.
        if torch.cuda.is_available():
            raise
        print(f"torch.compile does not work here: {error}", file=sys.stderr)
        return programs({"eager": None})


def measure(workload: Workload, rounds: int) -> dict[str, Any]:
    """Times all of them; returns what the JSON holds, by program."""
    ours = {
        f"JAX {title}": step_cost.Stepper(workload, 32, name)
        for title, name in (("SGD", "sgd"), ("INSGD-l2", "insgd-l2"))
    }
    stepper = ours["JAX SGD"]
    images, labels = map(np.asarray, stepper.batch)
    programs = torch_programs(images, labels, workload.dtype, stepper.steps_per_call())
    all_programs = programs | {n: one.run_from(one.state) for n, one in ours.items()}
    rng = np.random.default_rng(0)
    times = timing.interleave(all_programs, rounds, rng)
    seconds = {name: stepper.per_step(one.seconds) for name, one in times.items()}
    fastest = min((seconds[name] for name in programs), key=np.median)
    return {
        name: {
            "median_seconds": float(np.median(one)),
            "quartiles": np.percentile(one, [25, 75]).tolist(),
            "images_per_second": workload.batch_size / float(np.median(one)),
            "over_pytorch": vars(timing.compare(one, fastest, rng)),
        }
        for name, one in seconds.items()
    }


def to_markdown(results: dict[str, Any]) -> str:
    lines = ["| step | ms (quartiles) | over PyTorch (95 %) | images/s |"]
    lines += ["| --- | --- | --- | --- |"]
    for name, one in results.items():
        low, high = (1000 * quartile for quartile in one["quartiles"])
        ratio, interval = (one["over_pytorch"][k] for k in ("of_medians", "interval"))
        lines.append(
            f"| {name} | {1000 * one['median_seconds']:.2f} ({low:.2f} to {high:.2f}) "
            f"| {ratio:.3f} ({interval[0]:.3f} to {interval[1]:.3f}) "
            f"| {one['images_per_second']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    on_gpu = jax.default_backend() == "gpu"
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=30)
    dtypes = ("bfloat16", "float32") if on_gpu else ("float32", "bfloat16")
    parser.add_argument("--dtype", choices=dtypes, default=dtypes[0])
    parser.add_argument("--output", type=Path, default="runs/benchmark_pytorch.json")
    args = parser.parse_args()
    if torch.cuda.is_available() != on_gpu:
        sys.exit(
            f"JAX computes on {jax.devices()[0].device_kind!r}, but PyTorch "
            f"{torch.__version__} {'does not see a' if on_gpu else 'sees a'} GPU: "
            "install both for it, or hide it with CUDA_VISIBLE_DEVICES=''."
        )
    about = provenance.describe()
    about["command"] = shlex.join(["python", *sys.argv])
    about["versions"] |= {"torch": torch.__version__, "torch_cuda": torch.version.cuda}
    about |= {"cpu_cores": os.cpu_count(), "load_average": os.getloadavg()}
    workload = Workload("resnet20", (), args.batch_size, args.dtype)
    results = measure(workload, args.rounds)
    record = {"environment": about, "rounds": args.rounds, "results": results}
    record |= {"batch_size": args.batch_size, "dtype": args.dtype}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=2) + "\n")
    print(f"{about['devices'][0]}, batch {args.batch_size}, {args.dtype}\n")
    print(to_markdown(results))


if __name__ == "__main__":
    main()
