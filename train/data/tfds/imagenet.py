"""Prepares ImageNet as tensorflow-datasets does, but without TensorFlow.

The result, in array_record files, has the names, version and features that
tensorflow-datasets uses. Within a split the images keep the order of the archive; the
builder of tensorflow-datasets would shuffle them on disk, with TensorFlow. Importing
this module imports tensorflow-datasets.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from train import progress as progress_bars
from train.data import imagenet

_VERSION = "5.1.0"
_SHARD_BYTES = 256 << 20
# Random access needs records that are not grouped.
_WRITER_OPTIONS = "group_size:1"


def prepare(archives: dict[str, Path], data_dir: Path) -> Path:
    """Writes the dataset to `data_dir`, atomically, unless it is already there.

    Args:
        archives: archive of each split.
        data_dir: data directory of tensorflow-datasets.

    Returns:
        The folder of the dataset.

    Raises:
        UserError: if an archive is damaged.
    """
    folder = data_dir / imagenet.NAME / _VERSION
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=_lines("labels.txt")),
            "file_name": tfds.features.Text(),
        }
    )
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="partial-") as made:
        partial = Path(made) / _VERSION
        partial.mkdir()
        splits = [
            _write_split(partial, split, archive, features)
            for split, archive in archives.items()
        ]
        tfds.folder_dataset.write_metadata(
            data_dir=partial,
            features=features,
            split_infos=splits,
            version=_VERSION,
            check_data=False,  # The check needs TensorFlow.
            supervised_keys=("image", "label"),
            homepage="https://image-net.org/",
            description="ILSVRC 2012, as published.",
        )
        try:
            partial.rename(folder)
        except OSError:
            # Another command may have prepared it in the meantime.
            if not folder.exists():
                raise
    return folder


def _write_split(
    folder: Path, split: str, archive: Path, features: tfds.features.FeaturesDict
) -> tfds.core.SplitInfo:
    """Writes the files of a split."""
    lengths: list[int] = []
    num_bytes = 0
    for records in _shards(_records(archive, split, features)):
        path = _shard(folder, split, len(lengths))
        writer = ArrayRecordWriter(str(path), _WRITER_OPTIONS)
        for record in records:
            writer.write(record)
        writer.close()
        lengths.append(len(records))
        num_bytes += sum(map(len, records))
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder,
        dataset_name=imagenet.NAME,
        split=split,
        filetype_suffix="array_record",
    )
    for number in range(len(lengths)):
        _shard(folder, split, number).rename(
            template.sharded_filepath(shard_index=number, num_shards=len(lengths))
        )
    return tfds.core.SplitInfo(
        name=split,
        shard_lengths=lengths,
        num_bytes=num_bytes,
        filename_template=template,
    )


def _records(
    archive: Path, split: str, features: tfds.features.FeaturesDict
) -> Iterator[bytes]:
    """Yields the serialized examples of a split."""
    with progress_bars.bar(
        total=imagenet.ARCHIVES[split].size,
        desc=f"Writing {split} images",
        unit="B",
        unit_scale=True,
        leave=False,
    ) as bar:
        labels = _lines("validation_labels.txt")
        for example in imagenet.examples(archive, split, labels):
            yield features.serialize_example(features.encode_example(example._asdict()))
            bar.update(len(example.image))


def _shards(records: Iterator[bytes]) -> Iterator[list[bytes]]:
    """Groups records into the files of a split."""
    shard: list[bytes] = []
    size = 0
    for record in records:
        if shard and size + len(record) > _SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append(record)
        size += len(record)
    if shard:
        yield shard


def _shard(folder: Path, split: str, number: int) -> Path:
    """Returns the temporary path of a file, until the number of files is known."""
    return folder / f"{split}-{number:05d}"


def _lines(file: str) -> list[str]:
    """Reads one of the lists of ImageNet labels that tensorflow-datasets contains."""
    path = tfds.core.tfds_path(f"datasets/{imagenet.NAME}/{file}")
    return path.read_text().split()
