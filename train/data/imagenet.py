"""ImageNet-1K: the published archives and the dataset prepared from them."""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from PIL import Image

from train.data.images import decode
from train.data.images.crops import Crops
from train.data.tfds import reader
from train.data.tfds.reader import INFO, data_dir
from train.data.tfds.records import Records
from train.data.types import Preprocessing, StreamedDataset
from train.errors import UserError

NAME = "imagenet2012"  # As in tensorflow-datasets.
_URL = "https://image-net.org/download-images"


class Archive(NamedTuple):
    """A published archive."""

    file: str
    size: int  # In bytes.
    num_images: int


# By split name of tensorflow-datasets. The paper tests on the validation images.
ARCHIVES = {
    "train": Archive("ILSVRC2012_img_train.tar", 147_897_477_120, 1_281_167),
    "validation": Archive("ILSVRC2012_img_val.tar", 6_744_924_160, 50_000),
}


CROPS = Crops(side=224, shorter_side=256)
# The largest published image takes 15 MB; a header may claim any size.
_MOST_IMAGE_BYTES = 1 << 27


class Example(NamedTuple):
    """One image."""

    file_name: str
    image: bytes  # JPEG.
    label: str  # WordNet ID of the class, such as n01440764.


def load() -> StreamedDataset:
    """Loads the prepared dataset, whose images are read when they are needed.

    Raises:
        UserError: if it is not prepared.
    """
    files = " and ".join(archive.file for archive in ARCHIVES.values())
    folder = reader.find(
        NAME,
        f"Download {files} from {_URL} (after registration) into {_manual()} and run: "
        f"python -m train prepare {NAME}.",
    )
    try:
        splits = json.loads((folder / INFO).read_bytes())["splits"]
        lengths = {each["name"]: sum(map(int, each["shardLengths"])) for each in splits}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / INFO} is damaged: it does not list the splits. Move {folder} "
            f"away and run: python -m train prepare {NAME}"
        ) from error
    for split, archive in ARCHIVES.items():
        if split not in lengths:
            raise UserError(
                f"{folder} has no split {split}: it was prepared without "
                f"{archive.file}. Move the folder away, put that file in "
                f"{_manual()} and run: python -m train prepare {NAME}"
            )
    reader.check_features(folder)  # Before workers open the files.
    train, test = (Records(folder, split, lengths[split]) for split in ARCHIVES)
    return StreamedDataset(
        name=NAME,
        train=train,
        test=test,
        class_names=tuple((folder / "label.labels.txt").read_text().split()),
        # Mean and standard deviation are from section 4.3; the shorter side is from
        # PyTorch's ImageNet example, with which the paper trains.
        preprocessing=Preprocessing(
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            shorter_side=CROPS.shorter_side,
        ),
        crops=CROPS,
        fingerprint=_fingerprint(folder),
    )


def _fingerprint(folder: Path) -> str:
    """Hashes the names and sizes of all files; their contents would take too long."""
    sizes = sorted((p.name, p.stat().st_size) for p in folder.iterdir() if p.is_file())
    return hashlib.sha256(repr(sizes).encode()).hexdigest()


def archives() -> dict[str, Path]:
    """Returns the paths of the archives by split.

    Raises:
        UserError: if one is missing or incomplete, or the disk has too little space
            for the dataset.
    """
    paths = {split: _manual() / archive.file for split, archive in ARCHIVES.items()}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        raise UserError(
            f"{' and '.join(missing)} not found in {_manual()}. Download "
            f"{'it' if len(missing) == 1 else 'them'} from {_URL} (after registration) "
            "into that folder and run this again."
        )
    for split, path in paths.items():
        size, published = path.stat().st_size, ARCHIVES[split].size
        if size != published:
            raise UserError(
                f"{path} is not the published file: it has {size:,} bytes, not "
                f"{published:,}. Download it again from {_URL}."
            )
    needed = sum(archive.size for archive in ARCHIVES.values())
    free = shutil.disk_usage(data_dir()).free
    if free < needed:
        raise UserError(
            f"{data_dir()} has {free / 1e9:.0f} GB free, and {needed / 1e9:.0f} GB are "
            "needed. Free some space, or set TFDS_DATA_DIR to another directory."
        )
    return paths


def examples(
    archive: Path, split: str, validation_labels: list[str]
) -> Iterator[Example]:
    """Yields the images of a split in the order of its archive, without unpacking it.

    Args:
        archive: archive of the split.
        split: name of the split.
        validation_labels: labels of the validation images, ordered by number.

    Raises:
        UserError: if the archive is damaged.
    """
    found = 0
    classes = set(validation_labels)
    try:
        for member, image, encoded in _images(archive, split):
            if split == "train":  # One inner archive per class.
                label = Path(member).stem
                if label not in classes:
                    raise ValueError(f"{member} belongs to no class of {NAME}")
            else:  # ILSVRC2012_val_00000001.JPEG is the first.
                number = int(Path(image).stem.rpartition("_")[2])
                if not 1 <= number <= len(validation_labels):
                    raise ValueError(f"{image} has a number that was not published")
                label = validation_labels[number - 1]
            yield _example(image, encoded, label)
            found += 1
    except (tarfile.TarError, *decode.UNDECODABLE) as error:
        raise UserError(
            f"{archive} is damaged: {error}. Download it again from {_URL}."
        ) from error
    # A partly written archive ends in zeros, which tarfile reads as the end.
    if found != ARCHIVES[split].num_images:
        raise UserError(
            f"{archive} is damaged: it has {found:,} images, not "
            f"{ARCHIVES[split].num_images:,}. Download it again from {_URL}."
        )


def _images(archive: Path, split: str) -> Iterator[tuple[str, str, bytes]]:
    """Yields each image with its name and that of the member of the archive."""
    with tarfile.open(archive, "r:") as tar:
        for member, file in _files(tar):
            if split != "train":
                yield member.name, member.name, _read(member, file)
                continue
            with tarfile.open(fileobj=file, mode="r:") as images:
                for image, content in _files(images):
                    yield member.name, image.name, _read(image, content)


def _files(tar: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """Yields an archive's members except folders, without following links."""
    for member in tar:
        if member.isdir():
            continue
        file = tar.extractfile(member) if member.isreg() else None
        if file is None:
            raise tarfile.ReadError(f"{member.name} is not a regular file")
        yield member, file


def _read(member: tarfile.TarInfo, file: IO[bytes]) -> bytes:
    if member.size > _MOST_IMAGE_BYTES:
        raise tarfile.ReadError(f"{member.name} has {member.size:,} bytes")
    return file.read()


def _example(file_name: str, encoded: bytes, label: str) -> Example:
    """Returns an image as published; CMYK JPEGs and PNGs are converted to RGB JPEGs."""
    with Image.open(io.BytesIO(encoded)) as image:  # Reads only the header.
        is_plain_jpeg = image.format == "JPEG" and image.mode in ("RGB", "L")
    if not is_plain_jpeg:
        # As in tensorflow-datasets since version 3.0.0 of the dataset.
        rewritten = io.BytesIO()
        decode.image(encoded).save(rewritten, "jpeg", quality=100)
        encoded = rewritten.getvalue()
    return Example(file_name, encoded, label)


def _manual() -> Path:
    """Returns the folder in which tensorflow-datasets expects manual downloads."""
    return data_dir() / "downloads" / "manual"
