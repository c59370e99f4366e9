"""`python -m train predict`: predicts the classes of images with a run's network."""

import csv
import dataclasses
import io
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from train import files
from train import progress as progress_bars
from train.config import check_numbers
from train.data.images.image_folder import SUFFIXES
from train.errors import UserError, print_warning
from train.inference.load import Checkpoint, TrainedModel, decode_image, restore_model
from train.markdown import counted
from train.run import folder as run_folder

_DIGITS = 6


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """Predict the classes of image files with the network of a run."""

    run_dir: tyro.conf.Positional[Path]
    """Run folder."""
    images: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE ...")
    ]
    """Image files of any size, and folders, which are searched recursively."""
    checkpoint: Checkpoint = "latest"
    """Checkpoint to load; best is by validation accuracy, or else by test accuracy."""
    top: int = 1
    """Number of classes to list for each image, the most probable first."""
    format: Literal["csv", "jsonl"] = "csv"
    """CSV with a header, or one line of JSON per image."""
    output: Path | None = None
    """File to write. Default: standard output."""
    batch_size: int = 256
    """Images per call of the network."""
    skip_corrupt_images: bool = False
    """Skip images that cannot be decoded, and list them."""
    trust_code: bool = False
    """Import the code, MODULE:NAME, that the run's record names."""

    def __post_init__(self) -> None:
        check_numbers(self, top=(1, math.inf), batch_size=(1, math.inf))
        if not self.images:
            raise ValueError("give image files or folders after the run folder")


def predict(config: PredictConfig) -> int:
    """Writes one line for each image, or for each of its most probable classes."""
    folder = run_folder.load(config.run_dir, None if config.trust_code else ())
    model, warnings = restore_model(folder, config.checkpoint)
    for message in warnings:
        print_warning(message)
    paths, num_others = _find(config.images)
    if config.output is None:
        _write(sys.stdout, model, paths, config)
    else:
        output = config.output.expanduser().absolute()
        if output.is_dir() or not output.parent.is_dir():  # Before minutes of work.
            raise UserError(
                f"--output {config.output} cannot be written. Pass a file in a folder "
                "that exists."
            )
        text = io.StringIO()
        _write(text, model, paths, config)
        # Atomically: a reader sees either the previous file or all predictions. Names
        # of files may be any bytes.
        files.write(output, text.getvalue().encode(errors="surrogateescape"))
    if num_others:
        print(
            f"Note: skipped {counted(num_others, 'file')} in folders: the names of "
            f"images end in {', '.join(SUFFIXES)}.",
            file=sys.stderr,
        )
    return 0


def _find(given: Sequence[Path]) -> tuple[list[Path], int]:
    """The image files, those of a folder in order, and the number of other files.

    Raises:
        UserError: for a path that does not exist, or a folder without images.
    """
    found: list[Path] = []
    num_others = 0
    for path in given:
        path = path.expanduser()
        if not path.exists():
            raise UserError(f"{path} does not exist. Give image files or folders.")
        if not path.is_dir():
            found.append(path)  # Whatever its suffix: it was named.
            continue
        files_below = _walk(path)
        images = [
            each
            for each in files_below
            # A pipe would block.
            if each.name.lower().endswith(SUFFIXES) and each.is_file()
        ]
        num_others += len(files_below) - len(images)
        if not images:
            raise UserError(
                f"{path} holds no images. Image files end in {', '.join(SUFFIXES)}."
            )
        found += images
    return found, num_others


def _walk(root: Path) -> list[Path]:
    """The files below a folder, in order, without hidden files and folders."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(folder, name) for name in sorted(names) if not name.startswith(".")
        ]
    return found


def _write(
    file: Any, model: TrainedModel, paths: Sequence[Path], config: PredictConfig
) -> None:
    top = min(config.top, len(model.class_names))
    write_rows = _write_csv if config.format == "csv" else _write_jsonl
    rows = (
        (path, _best(probabilities, model.class_names, top))
        for path, probabilities in _predictions(model, paths, config)
    )
    write_rows(file, rows, top)


def _predictions(
    model: TrainedModel, paths: Sequence[Path], config: PredictConfig
) -> Iterator[tuple[Path, np.ndarray]]:
    height, width, _ = model.image_shape
    corrupt: list[Path] = []
    num_resized = 0
    bar = progress_bars.bar(
        total=len(paths), unit="image", disable=len(paths) <= config.batch_size
    )
    with bar:
        for start in range(0, len(paths), config.batch_size):
            batch = paths[start : start + config.batch_size]
            read, images = [], []
            for path in batch:
                try:
                    image, resized = decode_image(model, path.read_bytes())
                except ValueError as error:
                    if not config.skip_corrupt_images:
                        raise UserError(
                            f"{path}: {error}. Remove it, or skip it with "
                            "--skip-corrupt-images."
                        ) from error
                    corrupt.append(path)
                else:
                    num_resized += resized
                    images.append(image)
                    read.append(path)
            if read:
                # Pad the last batch: a new batch size would need a new compilation.
                size = min(config.batch_size, len(paths))
                images += images[-1:] * (size - len(images))
                yield from zip(read, model.predict(np.stack(images), size))
            bar.update(len(batch))
    if num_resized:
        print(
            f"Note: {counted(num_resized, 'image')} resized and center-cropped to "
            f"{width}x{height} pixels, the size of the network's images.",
            file=sys.stderr,
        )
    if corrupt:
        print(
            f"Skipped {counted(len(corrupt), 'corrupt image')}: "
            f"{', '.join(map(str, corrupt))}",
            file=sys.stderr,
        )


def _best(
    probabilities: np.ndarray, names: Sequence[str], top: int
) -> list[tuple[str, float]]:
    """The most probable classes, with their probabilities."""
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [
        (names[label], round(float(probabilities[label]), _DIGITS)) for label in order
    ]


_Rows = Iterable[tuple[Path, list[tuple[str, float]]]]


def _write_csv(file: Any, rows: _Rows, top: int) -> None:
    writer = csv.writer(file, lineterminator="\n")
    rank = ["rank"] if top > 1 else []
    writer.writerow(["file", *rank, "class", "probability"])
    for path, best in rows:
        for number, (name, probability) in enumerate(best, start=1):
            ranked = [number] if top > 1 else []
            writer.writerow([path, *ranked, name, probability])


def _write_jsonl(file: Any, rows: _Rows, top: int) -> None:
    for path, best in rows:
        listed = [{"class": name, "probability": share} for name, share in best]
        line = {"file": str(path), **listed[0]} | ({"top": listed} if top > 1 else {})
        file.write(json.dumps(line) + "\n")
