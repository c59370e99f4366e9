"""Folders of images: reading, caching, and errors that name file and remedy."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from train.data import folder as folder_dataset
from train.data.images import crops, decode
from train.data.images.augment import Augmentation
from train.errors import UserError

from . import processes


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def by_bytes(images, labels):
    return sorted((label, image.tobytes()) for image, label in zip(images, labels))


def test_every_image_is_read_with_its_label(image_folder, cache):
    dataset = folder_dataset.load(str(image_folder), cache)

    assert dataset.class_names == ("cat", "dog")
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        files = sorted((image_folder / name).glob("*/*"))
        expected = [np.asarray(Image.open(file)) for file in files]
        labels = [dataset.class_names.index(file.parent.name) for file in files]
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int32
        assert by_bytes(*split) == by_bytes(expected, labels)
    # Section 4.1, at 32x32 pixels.
    assert dataset.preprocessing.augmentation == Augmentation(4, flip=True)
    assert dataset.preprocessing.mean == (0.4914, 0.4822, 0.4465)
    assert dataset.preprocessing.std == (0.2023, 0.1994, 0.2010)


def test_gray_palette_and_transparent_images_become_rgb(image_folder, cache):
    for number, mode in enumerate(("L", "P", "RGBA", "1")):
        image = Image.open(image_folder / "train/cat/0.png").convert(mode)
        image.save(image_folder / f"train/cat/mode{number}.PNG")
    dataset = folder_dataset.load(str(image_folder), cache)
    assert dataset.train.images.shape == (10, 32, 32, 3)


def test_a_second_load_takes_the_arrays_from_the_cache(
    image_folder, cache, monkeypatch
):
    first = folder_dataset.load(str(image_folder), cache)
    monkeypatch.delattr(decode, "rgb")
    second = folder_dataset.load(str(image_folder), cache)
    np.testing.assert_array_equal(second.train.images, first.train.images)
    np.testing.assert_array_equal(second.test.labels, first.test.labels)


@pytest.mark.parametrize("change", ["content", "new", "gone", "time"])
def test_a_changed_folder_is_read_again(image_folder, cache, change):
    folder_dataset.load(str(image_folder), cache)
    file = image_folder / "train/cat/0.png"
    if change == "content":
        Image.new("RGB", (32, 32), (1, 2, 3)).save(file)
    elif change == "new":
        Image.new("RGB", (32, 32), (1, 2, 3)).save(file.with_name("new.png"))
    elif change == "gone":
        file.unlink()
    else:
        shutil.copy(image_folder / "train/dog/0.png", file)
        os.utime(file, (1, 1))

    dataset = folder_dataset.load(str(image_folder), cache)

    files = sorted((image_folder / "train").glob("*/*"))
    labels = [dataset.class_names.index(path.parent.name) for path in files]
    expected = by_bytes([np.asarray(Image.open(path)) for path in files], labels)
    assert by_bytes(*dataset.train) == expected


def swap(one, other):
    aside = one.with_name(".aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


@pytest.mark.parametrize("change", ["content", "swapped classes", "swapped files"])
def test_a_change_that_keeps_sizes_and_times_is_noticed(image_folder, cache, change):
    cat, dog = image_folder / "train/cat", image_folder / "train/dog"
    for path in image_folder.glob("*/*/*.png"):
        path.with_suffix(".bmp").write_bytes(b"")
        Image.open(path).save(path.with_suffix(".bmp"))  # All files have one size.
        path.unlink()
        os.utime(path.with_suffix(".bmp"), (1, 1))
    first = folder_dataset.load(str(image_folder), cache)
    if change == "content":
        Image.new("RGB", (32, 32), (1, 2, 3)).save(cat / "0.bmp")
        os.utime(cat / "0.bmp", (1, 1))
    elif change == "swapped classes":
        swap(cat, dog)
    else:
        swap(cat / "0.bmp", cat / "1.bmp")

    second = folder_dataset.load(str(image_folder), cache)

    files = sorted((image_folder / "train").glob("*/*"))
    labels = [second.class_names.index(path.parent.name) for path in files]
    expected = by_bytes([np.asarray(Image.open(path)) for path in files], labels)
    assert by_bytes(*second.train) == expected
    assert second.describe()["fingerprint"] != first.describe()["fingerprint"]
    again = folder_dataset.load(str(image_folder), cache)
    assert again.describe() == second.describe()


def test_the_fingerprint_does_not_depend_on_times(image_folder, cache):
    first = folder_dataset.load(str(image_folder), cache)
    for path in image_folder.glob("*/*/*.png"):
        path.write_bytes(path.read_bytes())
    second = folder_dataset.load(str(image_folder), cache)
    assert second.describe() == first.describe()


def test_a_damaged_cache_is_rebuilt(image_folder, cache):
    first = folder_dataset.load(str(image_folder), cache)
    for path in cache.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-1])
    second = folder_dataset.load(str(image_folder), cache)
    np.testing.assert_array_equal(second.train.images, first.train.images)


def test_images_are_in_the_order_of_tensorflow_datasets(image_folder, cache):
    from tensorflow_datasets.core import hashing

    dataset = folder_dataset.load(str(image_folder), cache)
    for split, (images, _) in (("train", dataset.train), ("test", dataset.test)):
        hasher = hashing.Hasher(split)
        paths = [
            f"{split}/{p.parent.name}/{p.name}"
            for p in image_folder.glob(f"{split}/*/*")
        ]
        expected = [
            np.asarray(Image.open(image_folder / path))
            for path in sorted(paths, key=hasher.hash_key)
        ]
        np.testing.assert_array_equal(images, expected)


def test_the_fingerprint_covers_pixels_and_order(image_folder, tmp_path, monkeypatch):
    first = folder_dataset.load(str(image_folder), tmp_path / "first").describe()
    with monkeypatch.context() as patch:
        rgb = decode.rgb
        patch.setattr(decode, "rgb", lambda encoded: rgb(encoded) ^ np.uint8(1))
        pixels = folder_dataset.load(str(image_folder), tmp_path / "pixels").describe()
    monkeypatch.setattr(folder_dataset, "_shuffled", lambda split, files: sorted(files))
    order = folder_dataset.load(str(image_folder), tmp_path / "order").describe()
    assert len({each["fingerprint"] for each in (first, pixels, order)}) == 3
    assert first["files"] == pixels["files"] == order["files"]


def message(image_folder, cache, **options):
    with pytest.raises(UserError) as error:
        folder_dataset.load(str(image_folder), cache, **options)
    return str(error.value)


def test_a_missing_folder_is_an_error(tmp_path, cache):
    error = message(tmp_path / "none", cache)
    assert str(tmp_path / "none") in error
    assert "does not exist" in error
    assert "train/<class>/<image>" in error


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_missing_split_is_an_error(image_folder, cache, split):
    shutil.rmtree(image_folder / split)
    error = message(image_folder, cache)
    assert f"{image_folder} has no folder {split}/" in error


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_without_images_is_an_error(image_folder, cache, split):
    shutil.rmtree(image_folder / split)
    (image_folder / split).mkdir()
    (image_folder / split / "0.png").write_bytes(b"not in a class folder")
    error = message(image_folder, cache)
    assert f"{image_folder / split} has no images in class folders" in error
    assert "It contains: 0.png" in error


def test_a_class_without_images_is_an_error(image_folder, cache):
    (image_folder / "train/eel").mkdir()
    (image_folder / "train/eel/notes.txt").write_text("soon")
    assert f"{image_folder / 'train/eel'} has no images" in message(image_folder, cache)


def test_a_class_only_in_test_is_an_error(image_folder, cache):
    (image_folder / "test/cat").rename(image_folder / "test/cats")
    error = message(image_folder, cache)
    assert "The class 'cats'" in error
    assert "Classes in train/: cat, dog" in error


def test_a_single_class_is_an_error(image_folder, cache):
    for split in ("train", "test"):
        shutil.rmtree(image_folder / split / "dog")
    assert "one class, 'cat'" in message(image_folder, cache)


def test_hidden_and_other_files_are_ignored(image_folder, cache):
    (image_folder / "train/.thumbnails").mkdir()
    (image_folder / "train/cat/.0.png").write_bytes(b"")
    (image_folder / "train/cat/Thumbs.db").write_bytes(b"")
    assert len(folder_dataset.load(str(image_folder), cache).train.labels) == 6


def test_images_of_different_sizes_are_an_error_without_image_size(image_folder, cache):
    odd = image_folder / "train/dog/odd.png"
    Image.new("RGB", (40, 30)).save(odd)
    error = message(image_folder, cache)
    assert "Images differ in size" in error
    assert str(odd) in error
    assert "40x30" in error
    assert "32x32" in error
    assert "Use --image-size to resize and crop them all" in error
    for size in (16, 16, 32):  # The second time from the cache.
        resized = folder_dataset.load(str(image_folder), cache, image_size=size)
        assert resized.image_shape == (size, size, 3)
        assert resized.num_train == 7
        expected = crops.resize_and_crop(decode.image(odd.read_bytes()), (size, size))
        assert any(np.array_equal(expected, image) for image in resized.train.images)


def test_each_image_size_has_its_fingerprint_padding_and_cache(
    image_folder, cache, monkeypatch
):
    def load(size):
        return folder_dataset.load(str(image_folder), cache, image_size=size)

    whole, resized = load(None), load(16)
    assert whole.fingerprint != resized.fingerprint != load(20).fingerprint
    assert resized.preprocessing.augmentation.padding == 2  # An eighth of the side.
    # Images that already have the size are unchanged.
    np.testing.assert_array_equal(load(32).train.images, whole.train.images)
    monkeypatch.setattr(decode, "image", None)
    for size in (None, 16, 20, 32):  # Each has a cache of its own.
        load(size)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "damage",
    [truncate, lambda path: path.write_bytes(b""), lambda p: p.write_text("x")],
)
def test_a_corrupt_image_is_an_error_or_is_skipped(image_folder, cache, capsys, damage):
    damage(image_folder / "train/cat/1.png")

    error = message(image_folder, cache)
    assert error.startswith("1 corrupt image: ")
    assert str(image_folder / "train/cat/1.png") in error
    assert "--skip-corrupt-images" in error

    # With the option, loading continues and names the skipped images.
    dataset = folder_dataset.load(str(image_folder), cache, skip_corrupt=True)
    assert len(dataset.train.labels) == 5
    reported = capsys.readouterr().err
    assert "Skipping 1 corrupt image: " in reported
    assert "train/cat/1.png" in reported

    # Without the option, it is still an error.
    assert message(image_folder, cache) == error


def test_a_split_of_only_corrupt_images_is_an_error(image_folder, cache):
    for path in (image_folder / "test").glob("*/*"):
        path.write_bytes(b"")
    error = message(image_folder, cache, skip_corrupt=True)
    assert "None of the 2 images below" in error


def test_a_class_of_only_corrupt_images_is_an_error(image_folder, cache):
    for path in (image_folder / "train/cat").glob("*"):
        path.write_bytes(b"")
    error = message(image_folder, cache, skip_corrupt=True)
    folder = image_folder / "train/cat"
    assert f"None of the images in {folder} can be decoded" in error


def test_names_that_are_not_utf8_are_read(image_folder, cache):
    file = image_folder / "train/cat/0.png"
    file.rename(os.fsdecode(os.fsencode(file.parent) + b"/\xff.png"))
    dataset = folder_dataset.load(str(image_folder), cache)
    assert len(dataset.train.labels) == 6


def test_importing_and_reading_is_quiet_without_tensorflow_or_network(
    image_folder, cache
):
    program = """
import socket, sys
def refuse(*args, **kwargs): raise AssertionError("network")
socket.socket.connect = socket.getaddrinfo = refuse
from pathlib import Path
from train.data import digits
from train.data.images import decode
from train.data import folder as folder_dataset
digits.load()
assert "tensorflow_datasets" not in sys.modules
folder_dataset.load(sys.argv[1], Path(sys.argv[2]))
assert "tensorflow" not in sys.modules
"""
    command = ["-W", "error", "-c", program, image_folder, cache]
    result = processes.python(*command)
    bars = ("Reading", "Decoding")
    error = result.stderr.replace("\r", "\n").splitlines()
    assert result.stdout == ""
    assert [line for line in error if line.strip() and not line.startswith(bars)] == []


def test_files_that_are_not_read_are_named(image_folder, cache, capsys):
    nested = image_folder / "train/cat/sub/deeper"
    nested.mkdir(parents=True)
    shutil.copy(image_folder / "train/cat/0.png", nested / "9.jpg")
    (image_folder / "train/dog/notes.heic").write_text("")
    (image_folder / "test/loose.png").write_text("")
    shutil.rmtree(image_folder / "test/dog")
    dataset = folder_dataset.load(str(image_folder), cache)
    err = capsys.readouterr().err
    for name in (
        "train/cat/sub/deeper/9.jpg",
        "train/dog/notes.heic",
        "test/loose.png",
    ):
        assert name in err
    assert "has no images of these classes: dog." in err
    assert dataset.num_train == 6 and dataset.num_test == 1


def test_a_folder_that_is_read_completely_causes_no_warning(
    image_folder, cache, capsys
):
    (image_folder / "train/cat/.hidden").write_text("")
    folder_dataset.load(str(image_folder), cache)
    assert capsys.readouterr().err.count("Warning") == 0


def test_sixteen_bit_images_are_scaled_not_clipped(image_folder, cache):
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(ramp).save(image_folder / "train/cat/0.png")
    dataset = folder_dataset.load(str(image_folder), cache)
    expected = np.repeat((ramp // 257)[..., None], 3, axis=2)
    assert any(
        np.abs(image.astype(int) - expected).max() <= 1
        for image in dataset.train.images
    )


@pytest.mark.parametrize(
    ("suffix", "mode"), [(".png", "I;16"), (".tif", "I;16"), (".tif", "I;16B")]
)
def test_sixteen_bit_png_and_tiff_files_are_scaled(tmp_path, suffix, mode):
    pixels = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    kind = ">u2" if mode == "I;16B" else "<u2"
    image = Image.frombytes(mode, (32, 32), pixels.astype(kind).tobytes())
    image.save(tmp_path / f"a{suffix}")
    got = decode.rgb((tmp_path / f"a{suffix}").read_bytes())
    assert np.abs(got[..., 0].astype(int) - pixels // 257).max() <= 1


def test_integer_and_float_images_are_scaled(tmp_path):
    pixels = np.arange(0, 65536, 64).reshape(32, 32)
    Image.fromarray(pixels.astype(np.int32)).save(tmp_path / "i.tif")
    got = decode.rgb((tmp_path / "i.tif").read_bytes())
    assert np.abs(got[..., 0].astype(int) - pixels // 257).max() <= 1
    unit = pixels.astype(np.float32) / 65535
    Image.fromarray(unit).save(tmp_path / "f.tif")
    got = decode.rgb((tmp_path / "f.tif").read_bytes())
    assert np.abs(got[..., 0].astype(int) - 255 * unit).max() <= 1
    Image.fromarray(-unit).save(tmp_path / "f.tif")
    with pytest.raises(ValueError, match="from 0 to 1"):
        decode.rgb((tmp_path / "f.tif").read_bytes())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_by_its_exif_orientation(tmp_path, orientation):
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8, :8] = 250, 0, 0
    pixels[:8, 8:] = 0, 250, 0
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    got = decode.rgb((tmp_path / "a.jpg").read_bytes())
    expected = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(pixels),
    }[orientation]
    assert np.abs(got.astype(int) - expected).mean() < 5


@pytest.mark.parametrize("suffix", [".jfif", ".JPE"])
def test_other_suffixes_of_jpeg_are_read(image_folder, cache, suffix):
    file = image_folder / "train/cat/0.png"
    Image.open(file).save(file.with_suffix(suffix), format="JPEG")
    assert folder_dataset.load(str(image_folder), cache).num_train == 7


def test_an_image_with_damaged_exif_data_is_read(tmp_path):
    Image.new("RGB", (8, 8), (250, 0, 0)).save(
        tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12"
    )
    assert decode.rgb((tmp_path / "a.jpg").read_bytes()).shape == (8, 8, 3)
