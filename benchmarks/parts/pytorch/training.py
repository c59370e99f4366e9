"""ResNet-20 trained with PyTorch's SGD as our runs train it, from the same weights."""

import copy
import io
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import torch
from torch import nn

import models
from benchmarks.parts.pytorch import network, step
from benchmarks.parts.pytorch.images import Images
from benchmarks.parts.pytorch.step import Step
from benchmarks.task import Stopped
from train import files
from train.data.types import ImageDataset
from train.training import networks, optimizers
from train.training.state import create_state

Row = dict[str, Any]


def train(
    dataset: ImageDataset,
    options: Mapping[str, Any],
    modes: Sequence[str | None],
    path: Path,
    stopped: Callable[[], bool],
) -> tuple[list[Row], str]:
    """Trains a network, or resumes from the saved epoch.

    Args:
        dataset: the dataset.
        options: options of the run, as in `RunConfig`: epochs, batch size, learning
            rate, its milestones, dtype and options of the network.
        modes: modes of torch.compile, see `Step`; the first that works is used.
        path: the file in which the latest epoch is saved.
        stopped: called before each epoch; returns whether to stop.

    Returns:
        For each epoch its seconds and accuracy, named as in `metrics.jsonl`; and the
        mode of torch.compile.

    Raises:
        Stopped: if `stopped` returns true.
    """
    step.enable_autotuning_and_tf32()
    images = Images(dataset, options["batch_size"])
    model = _initial_model(dataset, options["model_options"])
    mode = _first_that_works(model, modes, images, options)
    take = Step(model, mode, options["dtype"], options["learning_rate"])
    rows = _restore(path, take) if path.exists() else []
    while len(rows) < options["epochs"]:
        if stopped():
            raise Stopped({"epochs": len(rows), "of": options["epochs"]})
        rows.append(_epoch(take, images, len(rows), options))
        _save(path, take, rows)
    return rows, mode or "eager"


def _initial_model(dataset: ImageDataset, texts: Sequence[str]) -> nn.Module:
    """Returns the network with the initial weights of a run with seed 0."""
    options = networks.parse_options(texts)
    num_classes = len(dataset.class_names)
    ours = models.create("resnet20", num_classes=num_classes, **options)
    sgd = optimizers.create("sgd", 0.1, optimizers.OptimizerConfig())
    rng, _ = jax.random.split(jax.random.key(0))
    state = create_state(ours, sgd.tx, rng, dataset.image_shape)
    model = network.resnet20(num_classes, **options)
    network.load_flax(model, jax.device_get(state.params))
    return model.to(step.device(), memory_format=torch.channels_last)


def _first_that_works(
    model: nn.Module,
    modes: Sequence[str | None],
    images: Images,
    options: Mapping[str, Any],
) -> str | None:
    """The first mode of torch.compile in which a step can be taken.

    Raises:
        RuntimeError: if there is none.
    """
    batch = next(images.train_batches(0))
    errors = []
    for mode in modes:
        try:
            Step(copy.deepcopy(model), mode, options["dtype"], 0.1)(*batch)
        # Errors have many types; for example, there may be no C++ compiler.
        except Exception as error:  # noqa: BLE001
            errors.append(step.warn(mode, error))
            continue
        return mode
    raise RuntimeError("; ".join(errors))


def _epoch(take: Step, images: Images, number: int, options: Mapping[str, Any]) -> Row:
    began = time.perf_counter()
    drops = sum(number >= milestone for milestone in options.get("milestones", ()))
    rate = options["learning_rate"] * options.get("milestone_factor", 1) ** drops
    for group in take.optimizer.param_groups:
        group["lr"] = rate
    take.model.train()
    loss, steps = torch.zeros((), device=step.device()), 0
    for batch in images.train_batches(number):
        loss += take(*batch)
        steps += 1
    top1 = _top1(take.model, images, options["dtype"])
    return {
        "epoch": number + 1,
        "learning_rate": rate,
        "train_loss": float(loss) / steps,
        "test_top1": top1,
        "seconds": time.perf_counter() - began,
    }


def _top1(model: nn.Module, images: Images, dtype: str) -> float:
    model.eval()
    right = torch.zeros((), dtype=torch.long, device=step.device())
    mixed = torch.autocast(step.device(), torch.bfloat16, enabled=dtype == "bfloat16")
    with torch.no_grad(), mixed:
        for x, labels in images.test_batches():
            right += (model(x).argmax(-1) == labels).sum()
    return float(right) / images.num_test


def _save(path: Path, take: Step, rows: list[Row]) -> None:
    states = {"model": take.model.state_dict(), "sgd": take.optimizer.state_dict()}
    content = io.BytesIO()
    torch.save(states | {"rows": rows}, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, content.getvalue())


def _restore(path: Path, take: Step) -> list[Row]:
    saved = torch.load(path, map_location=step.device(), weights_only=True)
    take.model.load_state_dict(saved["model"])
    take.optimizer.load_state_dict(saved["sgd"])
    return saved["rows"]
