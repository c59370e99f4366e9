"""Hostile archives: each is refused with a one-line error, or only read."""

import collections
import io
import tarfile
import zlib

import numpy as np
import pytest

from tests.train.tiny_imagenet import CLASSES, add, encode
from train.data import imagenet
from train.errors import UserError

FIRST = "ILSVRC2012_val_00000001.JPEG"
LABELS = [*CLASSES]


def special(kind, link=""):
    """A member that is not a regular file, with the name of the first image."""

    def write(tar, image):
        info = tarfile.TarInfo(FIRST)
        info.type, info.linkname = kind, link
        tar.addfile(info)

    return write


def named(name):
    """An image with this name."""
    return lambda tar, image: add(tar, name, image)


def sparse(tar, image):
    """A member of a terabyte of zeros that takes no space in the archive."""
    info = tarfile.TarInfo(FIRST)
    info.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.map": "0,0",
        "GNU.sparse.size": str(1 << 40),
    }
    tar.addfile(info)


def longer_than_the_archive(tar, image):
    info = tarfile.TarInfo(FIRST)
    info.size = 1 << 40
    tar.fileobj.write(info.tobuf())


def bomb(tar, image):
    """A PNG whose header claims 900 million pixels."""
    content = bytearray(encode(np.random.default_rng(0), 0, kind="png"))
    content[16:24] = 2 * (30_000).to_bytes(4, "big")  # Width and height.
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    add(tar, FIRST, bytes(content))


def archive_of(name, content):
    """An archive in the archive, as for the training images."""

    def write(tar, image):
        inner = io.BytesIO()
        with tarfile.open(fileobj=inner, mode="w") as images:
            add(images, f"{name}_1.JPEG", image)
        add(tar, f"{name}.tar", inner.getvalue() if content is None else content)

    return write


REFUSED = {
    "a symbolic link to a file outside": special(tarfile.SYMTYPE, "/etc/passwd"),
    "a hard link to what is not there": special(tarfile.LNKTYPE, "missing"),
    "a link to itself": special(tarfile.SYMTYPE, FIRST),
    "a pipe": special(tarfile.FIFOTYPE),
    "a device": special(tarfile.CHRTYPE),
    "a terabyte of zeros": sparse,
    "a size beyond the archive's end": longer_than_the_archive,
    "a number below the first": named("ILSVRC2012_val_00000000.JPEG"),
    "a number beyond the last": named("ILSVRC2012_val_00050001.JPEG"),
    "no number": named("image.JPEG"),
    "a class that there is not": archive_of("n99999999", None),
    "an archive that is none": archive_of(CLASSES[0], b"junk" * 300),
    "an image of 900 million pixels": bomb,
}
# A path is only a name: no file is written to it.
READ = {
    "a path that leads out": named(f"../../{FIRST}"),
    "a path from the root": named(f"/tmp/{FIRST}"),
}


@pytest.mark.parametrize("kind", [*REFUSED, *READ])
def test_a_hostile_archive_is_refused_or_only_read(tmp_path, monkeypatch, kind):
    split = (
        "train" if "class" in kind or kind.startswith("an archive") else "validation"
    )
    path = tmp_path / "inner" / "images.tar"
    path.parent.mkdir()
    image = encode(np.random.default_rng(0), 0)
    with tarfile.open(path, "w") as tar:
        (REFUSED | READ)[kind](tar, image)
    one = imagenet.ARCHIVES[split]._replace(num_images=1)
    monkeypatch.setitem(imagenet.ARCHIVES, split, one)
    if kind in READ:
        (example,) = imagenet.examples(path, split, LABELS)
        assert example.image == image
        assert example.label == CLASSES[0]
    else:
        with pytest.raises(UserError, match="images.tar is damaged"):
            collections.deque(imagenet.examples(path, split, LABELS), maxlen=0)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["images.tar", "inner"]
