"""`python -m train eval`: evaluates a checkpoint of a run."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from train import files, own_code, provenance, strict_json
from train.data import registry
from train.data.types import Dataset, RecordedDataset
from train.errors import UserError, print_warning
from train.inference import confusion
from train.inference.load import Checkpoint, RestoredRun, restore
from train.markdown import counted
from train.run import folder as run_folder
from train.run.experiment import create_evaluator
from train.run.folder import RunFolder
from train.training import parallel


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluate a checkpoint of a run on test images, class by class."""

    run_dir: tyro.conf.Positional[Path]
    """Run folder."""
    checkpoint: Checkpoint = "latest"
    """Checkpoint to load; best is by validation accuracy, or else by test accuracy."""
    dataset: Annotated[str | None, tyro.conf.arg(metavar="|".join(registry.NAMES))] = (
        None
    )
    """Another dataset with the same classes. Default: the run's own."""
    output_dir: Path | None = None
    """Folder for eval.json and confusion.png. Default: neither is written."""
    cache_dir: Path | None = None
    """Cache of decoded images. Default: the run's."""
    skip_corrupt_images: bool = False
    """Skip images of folder:PATH that cannot be decoded, and list them."""
    trust_code: bool = False
    """Import the code, MODULE:NAME, that the run's record names."""

    def __post_init__(self) -> None:
        if self.dataset is not None:
            registry.check_name(self.dataset)
            object.__setattr__(self, "dataset", registry.absolute(self.dataset))


def evaluate(config: EvalConfig) -> int:
    """Prints a checkpoint's test loss and accuracies, and what it confuses."""
    folder = run_folder.load(config.run_dir, None if config.trust_code else ())
    run = restore(folder, config.checkpoint)
    for message in run.warnings:
        print_warning(message)
    dataset = _load_data(folder, config, run.dataset)
    if config.dataset is not None:
        _check_fits(dataset, run.dataset)
    # Other data have another mean, but the network was trained with this one.
    dataset = dataclasses.replace(dataset, preprocessing=run.dataset.preprocessing)
    devices = parallel.create(run.config.parallel)
    evaluator = create_evaluator(run.config, dataset, devices, confusion=True)
    scores = jax.device_get(evaluator.evaluate(devices.replicate(run.state)))
    counts = scores.pop("confusion")
    averaged = "" if run.config.ema_decay is None else ", averaged weights"
    on_other = "" if config.dataset is None else f" of {dataset.name}"
    # With up to five classes, the top-5 accuracy is always 100 %.
    shows_top5 = len(dataset.class_names) > 5
    top5 = f", top-5 {100 * scores['top5']:.2f} %" if shows_top5 else ""
    print(
        f"{config.checkpoint} checkpoint, step {run.step}{averaged}, on "
        f"{counted(dataset.num_test, 'test image')}{on_other}: loss "
        f"{scores['loss']:.4f}, top-1 {100 * scores['top1']:.2f} %{top5}"
    )
    print(f"\n{confusion.describe(counts, dataset.class_names)}")
    if config.output_dir is not None:
        _write(config, folder, run, dataset, scores, counts)
    return 0


def _load_data(
    folder: RunFolder, config: EvalConfig, trained_on: RecordedDataset
) -> Dataset:
    """The data to evaluate on; the run's own must be unchanged."""
    options = folder.config
    if config.skip_corrupt_images:
        options = dataclasses.replace(options, skip_corrupt_images=True)
    if config.cache_dir is not None:
        options = dataclasses.replace(options, cache_dir=config.cache_dir)
    if config.dataset is not None:
        height, width, _ = trained_on.image_shape
        resize = registry.can_resize(config.dataset) and height == width
        return dataclasses.replace(
            options, dataset=config.dataset, image_size=height if resize else None
        ).load_dataset()
    dataset = options.load_dataset()
    folder.check_dataset(dataset.describe())
    folder.warn_without_fingerprint()
    return dataset


def _check_fits(dataset: Dataset, trained_on: RecordedDataset) -> None:
    """Raises unless a network that was trained on other data can take these."""
    names, expected = dataset.class_names, trained_on.class_names
    if len(names) != len(expected):
        raise UserError(
            f"--dataset {dataset.name} has {len(names)} classes, but the run was "
            f"trained on {len(expected)}. Use a dataset with the same classes."
        )
    differing = [
        f"{number} is {ours!r}, was {theirs!r}"
        for number, (ours, theirs) in enumerate(zip(names, expected, strict=True))
        if ours != theirs
    ]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UserError(
            f"--dataset {dataset.name} has different classes from those of the run: "
            f"class {', class '.join(differing[:3])}{more}. Use a dataset with the "
            "same class names in the same order."
        )
    if dataset.image_shape != trained_on.image_shape:
        raise UserError(
            f"--dataset {dataset.name} has images of {_size(dataset.image_shape)}, but "
            f"the run was trained on {_size(trained_on.image_shape)}. Use images of "
            "that size."
        )


def _size(shape: tuple[int, ...]) -> str:
    height, width, channels = shape
    return f"{width}x{height} pixels in {counted(channels, 'channel')}"


def _write(
    config: EvalConfig,
    folder: RunFolder,
    run: RestoredRun,
    dataset: Dataset,
    scores: dict[str, Any],
    counts: np.ndarray,
) -> None:
    assert config.output_dir is not None
    output = config.output_dir.expanduser().absolute()
    output.mkdir(parents=True, exist_ok=True)
    values = {
        "run": str(folder.path),
        "checkpoint": config.checkpoint,
        "step": run.step,
        "dataset": dataset.describe(),
        **{name: float(value) for name, value in scores.items()},
        "classes": confusion.by_class(counts, dataset.class_names),
        # Rows are true classes, columns predicted ones, in the order of `classes`.
        "confusion": counts.tolist(),
        "environment": provenance.describe(),
    }
    files.write(output / "eval.json", strict_json.encode(values))
    title = (
        f"{own_code.short(run.config.model)} on {registry.short_name(dataset.name)}: "
        f"top-1 {100 * scores['top1']:.2f} % on "
        f"{counted(dataset.num_test, 'test image')}"
    )
    confusion.plot(counts, dataset.class_names, title, output / "confusion.png")
    print(f"\nIn {output}: eval.json, confusion.png")
