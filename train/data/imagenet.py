"""ImageNet-1K: its archives, where they must lie, and the data set made of them."""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from train.data import decode
from train.data.crops import Crops
from train.data.registry import Preprocessing, StreamedDataset
from train.data.tfds import reader
from train.data.tfds.data_dir import INFO, data_dir, find
from train.data.tfds.records import Records
from train.errors import UserError

NAME = "imagenet2012"  # As in tensorflow-datasets.
_URL = "https://image-net.org/download-images"


class Archive(NamedTuple):
    """A published file."""

    file: str
    size: int  # In bytes.
    num_images: int


# By split, as tensorflow-datasets names it: the paper tests on the validation images.
ARCHIVES = {
    "train": Archive("ILSVRC2012_img_train.tar", 147_897_477_120, 1_281_167),
    "validation": Archive("ILSVRC2012_img_val.tar", 6_744_924_160, 50_000),
}


CROPS = Crops(side=224, shorter_side=256)


class Example(NamedTuple):
    """One image."""

    file_name: str
    image: bytes  # JPEG.
    label: str  # The WordNet number of its class, such as n01440764.


def load() -> StreamedDataset:
    """The prepared data set; its images are read when they are needed.

    Raises:
        UserError: if it is not prepared.
    """
    files = " and ".join(archive.file for archive in ARCHIVES.values())
    folder = find(
        NAME,
        f"Put {files} ({_URL}, after registration) into {_manual()}, and run: python "
        f"-m train prepare {NAME}.",
    )
    try:
        splits = json.loads((folder / INFO).read_bytes())["splits"]
        lengths = {each["name"]: sum(map(int, each["shardLengths"])) for each in splits}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / INFO} is damaged: it does not list the splits. Move {folder} "
            f"away, and run: python -m train prepare {NAME}"
        ) from error
    for split, archive in ARCHIVES.items():
        if split not in lengths:
            raise UserError(
                f"{folder} has no split {split}: it was prepared without "
                f"{archive.file}. Move the folder away, put that file into "
                f"{_manual()}, and run: python -m train prepare {NAME}"
            )
    reader.check_features(folder)  # Before workers open it.
    train, test = (Records(folder, split, lengths[split]) for split in ARCHIVES)
    return StreamedDataset(
        name=NAME,
        train=train,
        test=test,
        class_names=tuple((folder / "label.labels.txt").read_text().split()),
        # The paper gives none of its own; these are those of PyTorch's example, which
        # it trains with.
        preprocessing=Preprocessing(
            mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
        ),
        crops=CROPS,
        fingerprint=_fingerprint(folder),
    )


def _fingerprint(folder: Path) -> str:
    """Of the names and sizes of all files: to read them would take half an hour."""
    sizes = sorted((p.name, p.stat().st_size) for p in folder.iterdir() if p.is_file())
    return hashlib.sha256(repr(sizes).encode()).hexdigest()


def archives() -> dict[str, Path]:
    """Where the archives lie, by split.

    Raises:
        UserError: if one is missing or not whole, or the disk has no room for both
            once more.
    """
    paths = {split: _manual() / archive.file for split, archive in ARCHIVES.items()}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        raise UserError(
            f"{' and '.join(missing)} not found in {_manual()}. ImageNet must be "
            f"downloaded by hand, after registration, from {_URL}: put "
            f"{'it' if len(missing) == 1 else 'them'} there and run this again."
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
            "needed. Make room, or let TFDS_DATA_DIR name another place."
        )
    return paths


def examples(
    archive: Path, split: str, validation_labels: list[str]
) -> Iterator[Example]:
    """The images of a split, in the order of its archive, which is not unpacked.

    Args:
        archive: the split's.
        split: its name.
        validation_labels: in the order of the validation images' numbers.

    Raises:
        UserError: if the archive is damaged.
    """
    found = 0
    try:
        for member, image, encoded in _images(archive, split):
            if split == "train":  # An archive for each class.
                label = Path(member).stem
            else:  # ILSVRC2012_val_00000001.JPEG is the first.
                label = validation_labels[int(Path(image).stem.rpartition("_")[2]) - 1]
            yield _example(image, encoded, label)
            found += 1
    except (tarfile.TarError, *decode.UNDECODABLE) as error:
        raise UserError(
            f"{archive} is damaged: {error}. Download it again from {_URL}."
        ) from error
    # What was never written of it reads as zeros, and they as the archive's end.
    if found != ARCHIVES[split].num_images:
        raise UserError(
            f"{archive} is damaged: it holds {found:,} images, not "
            f"{ARCHIVES[split].num_images:,}. Download it again from {_URL}."
        )


def _images(archive: Path, split: str) -> Iterator[tuple[str, str, bytes]]:
    """Images with their names and those of the archive's members they are in."""
    with tarfile.open(archive, "r:") as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is None:  # A folder.
                continue
            if split != "train":
                yield member.name, member.name, file.read()
                continue
            with tarfile.open(fileobj=file, mode="r:") as images:
                for image in images:
                    if (content := images.extractfile(image)) is not None:
                        yield member.name, image.name, content.read()


def _example(file_name: str, encoded: bytes, label: str) -> Example:
    """An image as published, unless it is one of a few in CMYK or PNG."""
    with Image.open(io.BytesIO(encoded)) as image:  # Reads no more than its header.
        as_it_is = image.format == "JPEG" and image.mode in ("RGB", "L")
    if not as_it_is:
        # As tensorflow-datasets does since its version 3.0.0.
        rewritten = io.BytesIO()
        decode.image(encoded).save(rewritten, "jpeg", quality=100)
        encoded = rewritten.getvalue()
    return Example(file_name, encoded, label)


def _manual() -> Path:
    """Where tensorflow-datasets looks for what must be downloaded by hand."""
    return data_dir() / "downloads" / "manual"
