"""ImageNet from its archives to records, on archives of a few images."""

import io
import sys
import time

import numpy as np
import pytest
from PIL import Image

from train import cli
from train.data import imagenet, registry
from train.errors import UserError

from . import tiny_imagenet


@pytest.fixture
def load(tmp_path):
    return lambda: registry.load("imagenet2012", tmp_path / "cache")


def pixels(encoded):
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image.convert("RGB"), int)


def test_a_dataset_prepared_from_the_archives_holds_their_images(
    data_dir, load, monkeypatch, capsys
):
    written = tiny_imagenet.write_archives(data_dir, monkeypatch)
    # Several files per split.
    monkeypatch.setattr("train.data.tfds.imagenet._SHARD_BYTES", 10_000)

    assert cli.main(["prepare", "imagenet2012"]) == 0

    assert "--dataset imagenet2012" in capsys.readouterr().out
    assert "tensorflow" not in sys.modules
    assert [path.name for path in (data_dir / "imagenet2012").iterdir()] == ["5.1.0"]
    assert len(list((data_dir / "imagenet2012/5.1.0").glob("*-train*"))) > 1
    dataset = load()
    assert dataset.describe()["image_shape"] == [224, 224, 3]
    assert len(dataset.class_names) == 1000
    assert dataset.class_names[:3] == tiny_imagenet.CLASSES
    for split, records in (("train", dataset.train), ("validation", dataset.test)):
        expected = list(written[split].values())
        assert len(records) == len(expected)
        found = records.read(range(len(records)))
        assert [record.label for record in found] == [one.label for one in expected]
        rewritten = 0
        for record, one in zip(found, expected, strict=True):
            if record.image == one.image:
                continue
            rewritten += 1
            with Image.open(io.BytesIO(record.image)) as image:
                assert (image.format, image.mode) == ("JPEG", "RGB")
            assert np.abs(pixels(record.image) - pixels(one.image)).mean() < 2
        assert rewritten == (2 if split == "train" else 0)  # CMYK and PNG.
        again = records.read([3, 0])
        assert again == [found[3], found[0]]


def test_tensorflow_datasets_reads_the_dataset_by_its_name(data_dir, monkeypatch):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder

    written = tiny_imagenet.write_archives(data_dir, monkeypatch)
    assert cli.main(["prepare", "imagenet2012"]) == 0

    decoders = {"image": tfds.decode.SkipDecoding()}
    source = tfds.data_source(
        "imagenet2012",
        split="validation",
        data_dir=data_dir,
        decoders=decoders,
        download=False,
        builder_kwargs={"file_format": "array_record"},
    )
    assert len(source) == 13
    for example in source:
        one = written["validation"][example["file_name"].decode()]
        assert (example["image"], example["label"]) == one

    builder = tfds.builder_from_directory(data_dir / "imagenet2012/5.1.0")
    theirs = imagenet2012_dataset_builder.Builder
    assert builder.info.full_name == f"imagenet2012/{theirs.VERSION}"
    assert set(builder.info.features) == {"image", "label", "file_name"}
    assert builder.info.supervised_keys == ("image", "label")


def test_preparing_again_changes_no_file(data_dir, monkeypatch):
    tiny_imagenet.write_archives(data_dir, monkeypatch)
    assert cli.main(["prepare", "imagenet2012"]) == 0
    before = {p: p.stat().st_mtime_ns for p in data_dir.rglob("*.*")}
    assert cli.main(["prepare", "imagenet2012"]) == 0
    assert {p: p.stat().st_mtime_ns for p in data_dir.rglob("*.*")} == before


def test_a_dataset_that_is_not_prepared_is_an_error_within_two_seconds(data_dir, load):
    started = time.perf_counter()
    with pytest.raises(UserError) as error:
        load()
    assert time.perf_counter() - started < 2
    for part in (
        "imagenet2012 is not prepared",
        "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar",
        "https://image-net.org/download-images",
        str(data_dir / "downloads/manual"),
        "python -m train prepare imagenet2012",
        "TFDS_DATA_DIR",
    ):
        assert part in str(error.value)


def test_missing_archives_are_named_with_their_folder(data_dir, monkeypatch, capsys):
    started = time.perf_counter()
    assert cli.main(["prepare", "imagenet2012"]) == 2
    assert time.perf_counter() - started < 2
    err = capsys.readouterr().err
    assert "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar not found" in err
    assert str(data_dir / "downloads/manual") in err

    tiny_imagenet.write_archives(data_dir, monkeypatch)
    (data_dir / "downloads/manual/ILSVRC2012_img_val.tar").unlink()
    assert cli.main(["prepare", "imagenet2012"]) == 2
    err = capsys.readouterr().err
    assert "Error: ILSVRC2012_img_val.tar not found" in err
    assert "Download it from" in err


def test_an_archive_of_another_size_is_refused(data_dir, monkeypatch):
    published = imagenet.ARCHIVES
    tiny_imagenet.write_archives(data_dir, monkeypatch)
    monkeypatch.setattr(imagenet, "ARCHIVES", published)
    with pytest.raises(UserError, match="img_train.tar.*bytes, not 147,897,477,120"):
        imagenet.archives()


def test_a_full_disk_is_an_error_before_anything_is_written(data_dir, monkeypatch):
    tiny_imagenet.write_archives(data_dir, monkeypatch)
    usage = imagenet.shutil.disk_usage(data_dir)._replace(free=1)
    monkeypatch.setattr(imagenet.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="0 GB free.*TFDS_DATA_DIR"):
        imagenet.archives()


@pytest.mark.parametrize("damage", ["cut short", "no image"])
def test_a_damaged_archive_leaves_no_files(data_dir, monkeypatch, capsys, damage):
    tiny_imagenet.write_archives(data_dir, monkeypatch)
    path = data_dir / "downloads/manual/ILSVRC2012_img_train.tar"
    content = bytearray(path.read_bytes())
    if damage == "cut short":
        half = len(content) // 2
        content[half:] = bytes(len(content) - half)
    else:  # The first image's first bytes, after the headers of the two archives.
        content[1024:1040] = bytes(16)
    path.write_bytes(content)
    assert cli.main(["prepare", "imagenet2012"]) == 2
    assert f"{path} is damaged" in capsys.readouterr().err
    assert list((data_dir / "imagenet2012").iterdir()) == []


def test_tfrecord_files_and_missing_splits_are_named_with_the_remedy(data_dir, load):
    folder = data_dir / "imagenet2012/5.1.0"
    folder.mkdir(parents=True)
    info = folder / "dataset_info.json"
    info.write_text('{"fileFormat": "tfrecord"}')
    with pytest.raises(UserError, match="5.1.0 has tfrecord files.*prepare imagenet"):
        load()
    info.write_text(
        '{"fileFormat": "array_record",'
        ' "splits": [{"name": "train", "shardLengths": ["2", "1"]}]}'
    )
    with pytest.raises(UserError, match="no split validation.*ILSVRC2012_img_val.tar"):
        load()
