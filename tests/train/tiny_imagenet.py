"""ImageNet's archives, with a few dozen small images, and their contents."""

import io
import tarfile
from typing import NamedTuple

import numpy as np
from PIL import Image

from train.data import imagenet

CLASSES = ("n01440764", "n01443537", "n01484850")  # Labels 0, 1 and 2.
TRAIN_PER_CLASS = 9
# The labels of the first validation images, as published.
VALIDATION_LABELS = (65, 970, 230, 809, 516, 57, 334, 415, 674, 332, 109, 286, 370)


class Written(NamedTuple):
    """An image of an archive."""

    image: bytes
    label: int


def write_archives(data_dir, monkeypatch):
    """Writes both archives to the folder where they are expected.

    Returns:
        Their images by split and file name. One is in CMYK and one is a PNG, as in
        ImageNet; one is gray.
    """
    rng = np.random.default_rng(0)
    written = {"train": {}, "validation": {}}
    folder = data_dir / "downloads" / "manual"
    folder.mkdir(parents=True)
    with tarfile.open(folder / imagenet.ARCHIVES["train"].file, "w") as tar:
        for label, name in enumerate(CLASSES):
            images = io.BytesIO()
            with tarfile.open(fileobj=images, mode="w") as inner:
                for number in range(TRAIN_PER_CLASS):
                    mode = {(1, 3): "CMYK", (1, 4): "L"}.get((label, number), "RGB")
                    kind = "png" if (label, number) == (2, 5) else "jpeg"
                    encoded = encode(rng, label, mode, kind)
                    file = f"{name}_{number}.JPEG"
                    add(inner, file, encoded)
                    written["train"][file] = Written(encoded, label)
            add(tar, f"{name}.tar", images.getvalue())
    with tarfile.open(folder / imagenet.ARCHIVES["validation"].file, "w") as tar:
        # Not in the order of their names.
        for number, label in reversed(list(enumerate(VALIDATION_LABELS, start=1))):
            encoded = encode(rng, number % 3)
            file = f"ILSVRC2012_val_{number:08d}.JPEG"
            add(tar, file, encoded)
            written["validation"][file] = Written(encoded, label)
    small = {
        split: archive._replace(
            size=(folder / archive.file).stat().st_size,
            num_images=len(written[split]),
        )
        for split, archive in imagenet.ARCHIVES.items()
    }
    monkeypatch.setattr(imagenet, "ARCHIVES", small)
    return written


def add(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def encode(rng, label, mode="RGB", kind="jpeg"):
    """An image of random size; the label shows in its brightness."""
    height, width = rng.integers(20, 70, 2)
    # Rough enough to distinguish images, smooth enough for JPEG.
    pixels = rng.integers(0, 80, (height // 8 + 1, width // 8 + 1, 3)) + 80 * label
    image = Image.fromarray(pixels.astype(np.uint8)).resize((int(width), int(height)))
    encoded = io.BytesIO()
    image.convert(mode).save(encoded, kind)
    return encoded.getvalue()
