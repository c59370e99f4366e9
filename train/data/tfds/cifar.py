"""Prepares CIFAR as tensorflow-datasets does, but without TensorFlow.

The result, in array_record files, has the names, version and features that
tensorflow-datasets uses. Importing this module imports tensorflow-datasets.
"""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image

from train import progress as progress_bars
from train.data.cifar import Cifar


# Not registered: tensorflow-datasets has builders of these names.
class _CifarBuilder(  # type: ignore[call-arg]  # The base class has no types.
    tfds.core.GeneratorBasedBuilder, skip_registration=True
):
    """Builder of CIFAR-10 or CIFAR-100."""

    VERSION = tfds.core.Version("3.0.2")

    def __init__(self, cifar: Cifar, archive: Path, **kwargs: Any):
        self.name = cifar.name
        self._cifar = cifar
        self._archive = archive
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        labels = {
            kind: tfds.features.ClassLabel(names=names)
            for kind, names in self._cifar.label_names(self._archive).items()
        }
        return self.dataset_info_from_configs(
            description=f"{self._cifar.archive}, as published.",
            homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(32, 32, 3)),
                    **labels,
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {split: self._generate_examples(split) for split in self._cifar.files}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, Any]]:
        examples = self._cifar.examples(self._archive, split)
        for index, example in enumerate(
            progress_bars.bar(examples, f"Reading {split} images", leave=False)
        ):
            # tensorflow-datasets would need TensorFlow to encode an array.
            encoded = io.BytesIO()
            Image.fromarray(example.image).save(encoded, "png")
            yield (
                index,
                {
                    "id": f"{split}_{index:05d}",
                    "image": encoded.getvalue(),
                    **example.labels,
                },
            )


def prepare(cifar: Cifar, archive: Path, data_dir: Path) -> None:
    """Writes the dataset to `data_dir`, unless it is already there."""
    tfds.disable_progress_bar()
    builder = _CifarBuilder(cifar, archive, data_dir=data_dir)
    # It would announce a download, but there is none.
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
