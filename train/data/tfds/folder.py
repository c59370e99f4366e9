"""Builder of image folders for tensorflow-datasets that needs no TensorFlow.

The encoded images are stored in array_record files, to which data sources have random
access without TensorFlow. Importing this module imports tensorflow-datasets.
"""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from train import progress as progress_bars
from train.data.image_folder import SPLITS, ImageFolder

# Not registered: the builder is not looked up by name.
with tfds.core.registered.skip_registration():

    class FolderImages(tfds.core.GeneratorBasedBuilder):
        """Builder of `train/<class>/*` and `test/<class>/*`."""

        VERSION = tfds.core.Version("1.0.0")

        def __init__(self, folder: ImageFolder, **kwargs: Any):
            self._folder = folder
            super().__init__(file_format="array_record", **kwargs)

        def _info(self) -> tfds.core.DatasetInfo:
            return self.dataset_info_from_configs(
                description=f"Images of the folder {self._folder.root}.",
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(),
                        "label": tfds.features.ClassLabel(
                            names=self._folder.class_names
                        ),
                        "filename": tfds.features.Text(),
                    }
                ),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            del dl_manager
            return {split: self._generate_examples(split) for split in SPLITS}

        def _generate_examples(self, split: str) -> Iterator[tuple[str, Any]]:
            files = self._folder.files[split]
            for name in progress_bars.bar(
                files, f"Reading {split} images", leave=False
            ):
                yield (
                    name,
                    {
                        # A path: encoding an array would need TensorFlow.
                        "image": self._folder.root / name,
                        "label": name.split("/")[1],
                        "filename": name,
                    },
                )


def prepare(folder: ImageFolder, data_dir: Path) -> dict[str, Any]:
    """Writes an image folder in the format of tensorflow-datasets.

    Args:
        folder: the image folder.
        data_dir: the folder to write to; a different one for each state of `folder`.

    Returns:
        The data source of each split, with examples {"image": encoded bytes, "label",
        "filename" in UTF-8}.
    """
    tfds.disable_progress_bar()
    builder = FolderImages(folder, data_dir=data_dir)
    # It would announce a download, but there is none.
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
    return {
        split: builder.as_data_source(
            split, decoders={"image": tfds.decode.SkipDecoding()}
        )
        for split in SPLITS
    }
