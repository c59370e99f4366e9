"""A tensorflow-datasets builder of image folders that needs no TensorFlow.

The images are kept as they are, encoded, in array_record files, which `data_source`
reads at random without TensorFlow. Importing this module imports tensorflow-datasets.
"""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from train import progress as progress_bars
from train.data.image_folder import SPLITS, ImageFolder

# The folder is the user's own: no builder to be found by name, nothing to look up.
with tfds.core.registered.skip_registration():

    class FolderImages(tfds.core.GeneratorBasedBuilder):
        """Images of `train/<class>/*` and `test/<class>/*`."""

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
                        # By path: from an array it would need TensorFlow to encode.
                        "image": self._folder.root / name,
                        "label": name.split("/")[1],
                        "filename": name,
                    },
                )


def prepare(folder: ImageFolder, data_dir: Path) -> dict[str, Any]:
    """Writes a folder as a tensorflow-datasets data set, unless that is done.

    Args:
        folder: what to write.
        data_dir: where to, one place for each state of a folder.

    Returns:
        By split, a data source: `len`, and by index {"image": encoded bytes, "label",
        "filename" in UTF-8}.
    """
    tfds.disable_progress_bar()
    builder = FolderImages(folder, data_dir=data_dir)
    # It announces downloads of unknown size; nothing is downloaded.
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
