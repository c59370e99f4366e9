"""CIFAR from archives to arrays, on archives of a few images."""

import dataclasses
import hashlib
import io
import json
import sys
import tarfile
import time

import numpy as np
import pytest

from train import cli
from train.data import cifar, registry
from train.data.tfds import reader
from train.errors import UserError

PER_FILE = 3


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture(params=["cifar10", "cifar100"])
def name(request):
    return request.param


def write_archive(name, data_dir, monkeypatch):
    """A small archive in the download folder; returns images and labels by split."""
    published = cifar.ALL[name]
    rng = np.random.default_rng(0)
    sizes = {"label": 100 if name == "cifar100" else 10, "coarse_label": 20}
    expected, members = {}, {}
    for split, files in published.files.items():
        images = rng.integers(0, 256, (len(files) * PER_FILE, 32, 32, 3), np.uint8)
        labels = {
            kind: rng.integers(0, sizes[kind], (len(images), 1), np.uint8)
            for kind in published.labels
        }
        expected[split] = images, labels["label"][:, 0]
        pixels = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        records = np.concatenate([*labels.values(), pixels], axis=1)
        for file, part in zip(files, np.split(records, len(files)), strict=True):
            members[file] = part.tobytes()
    for kind, file in published.labels.items():
        names = [f"{kind}_{number}" for number in range(sizes[kind])]
        members[file] = "\n".join([*names, ""]).encode()
    path = data_dir / "downloads" / published.archive
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w:gz") as tar:
        for file, content in members.items():
            info = tarfile.TarInfo(f"{published.folder}/{file}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    small = dataclasses.replace(published, sha256=sha256)
    monkeypatch.setitem(cifar.ALL, name, small)
    return expected


def test_a_dataset_prepared_from_the_archive_holds_its_images(
    name, data_dir, cache, monkeypatch, capsys
):
    expected = write_archive(name, data_dir, monkeypatch)

    assert cli.main(["prepare", name]) == 0

    assert "--dataset " + name in capsys.readouterr().out
    loaded = registry.load(name, cache)
    assert loaded.name == name
    assert len(loaded.class_names) == (100 if name == "cifar100" else 10)
    assert loaded.class_names[3] == "label_3"
    for split, (images, labels) in expected.items():
        # tensorflow-datasets shuffles the images, so sets are compared.
        got = getattr(loaded, split)
        pairs = {(im.tobytes(), int(label)) for im, label in zip(*got, strict=True)}
        wanted = zip(images, labels, strict=True)
        assert pairs == {(im.tobytes(), int(label)) for im, label in wanted}
    assert "tensorflow" not in sys.modules
    # Again from the cache, without the records.
    monkeypatch.setattr(cifar, "_decode", None)
    again = registry.load(name, cache)
    np.testing.assert_array_equal(again.train.images, loaded.train.images)


def test_tensorflow_datasets_reads_the_dataset(name, data_dir, monkeypatch):
    import tensorflow_datasets as tfds

    write_archive(name, data_dir, monkeypatch)
    assert cli.main(["prepare", name]) == 0

    builder = tfds.builder_from_directory(data_dir / name / "3.0.2")

    assert builder.info.full_name == f"{name}/3.0.2"
    assert set(builder.info.features) == {"id", "image", *cifar.ALL[name].labels}
    assert builder.info.splits["test"].num_examples == PER_FILE


def test_an_archive_with_another_checksum_is_refused(data_dir):
    path = data_dir / "downloads" / cifar.CIFAR10.archive
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half of it")
    with pytest.raises(UserError, match="is not https.*SHA-256.*Remove it"):
        cifar.find_archive(cifar.CIFAR10)


def test_a_truncated_download_is_not_kept(data_dir, tmp_path, monkeypatch):
    write_archive("cifar10", tmp_path / "elsewhere", monkeypatch)
    (source,) = (tmp_path / "elsewhere/downloads").iterdir()
    whole = source.read_bytes()
    monkeypatch.setattr(cifar.Cifar, "url", source.as_uri())
    source.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="is incomplete or is not the published file"):
        cifar.find_archive(cifar.ALL["cifar10"])
    assert not any((data_dir / "downloads").iterdir())
    source.write_bytes(whole)
    assert cifar.find_archive(cifar.ALL["cifar10"]).read_bytes() == whole


def test_a_failed_download_says_where_to_put_the_file(data_dir, tmp_path, monkeypatch):
    missing = (tmp_path / "missing.tar.gz").as_uri()
    monkeypatch.setattr(cifar.Cifar, "url", missing)
    with pytest.raises(UserError, match=f"put the file in {data_dir / 'downloads'}"):
        cifar.find_archive(cifar.CIFAR10)
    assert not any((data_dir / "downloads").iterdir())


def test_a_download_is_kept(data_dir, tmp_path, monkeypatch):
    write_archive("cifar10", tmp_path / "elsewhere", monkeypatch)
    (source,) = (tmp_path / "elsewhere/downloads").iterdir()
    monkeypatch.setattr(cifar.Cifar, "url", source.as_uri())
    path = cifar.find_archive(cifar.ALL["cifar10"])
    assert path.read_bytes() == source.read_bytes()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_tfrecord_files_are_named_with_the_remedy(data_dir, cache):
    folder = data_dir / "cifar10/3.0.2"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(json.dumps({"fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match="3.0.2 has tfrecord files.*prepare cifar10"):
        registry.load("cifar10", cache)


def test_a_dataset_that_is_not_prepared_is_an_error_within_two_seconds(
    name, data_dir, cache
):
    started = time.perf_counter()
    with pytest.raises(UserError) as error:
        registry.load(name, cache)
    assert time.perf_counter() - started < 2
    for part in (
        f"{name} is not prepared",
        str(data_dir / name),
        f"python -m train prepare {name}",
        str(data_dir / "downloads"),
        cifar.ALL[name].archive,
    ):
        assert part in str(error.value)


EVIL = """
import pathlib
pathlib.Path("was_run").write_text("")
import tensorflow_datasets as tfds
class Evil(tfds.features.Text): pass
"""


@pytest.mark.parametrize(
    "features",
    [
        {"pythonClassName": "evil_features.Evil", "text": {}},
        {"python_class_name": "evil_features.Evil", "text": {}},
        {"type": "evil_features.Evil", "content": {}},
        {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text"}
        | {"jsonFeature": {"json": json.dumps({"type": "evil_features.Evil"})}},
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_a_class_named_in_metadata_is_not_imported(
    features, whole, data_dir, cache, tmp_path, monkeypatch
):
    folder = data_dir / "cifar10/3.0.2"
    folder.mkdir(parents=True)
    info = {"fileFormat": "array_record", "name": "cifar10", "version": "3.0.2"}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    if not whole:
        features = {
            "pythonClassName": reader._FEATURES_DICT,
            "featuresDict": {"features": {"label": features}},
        }
    (folder / "features.json").write_text(json.dumps(features))
    (tmp_path / "evil_features.py").write_text(EVIL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"features\.json .*Only dictionaries of"):
        registry.load("cifar10", cache)
    assert not (tmp_path / "was_run").exists()


def test_a_duplicate_key_in_features_is_refused(tmp_path):
    known = reader._FEATURES_DICT
    (tmp_path / "features.json").write_text(
        f'{{"pythonClassName": "evil.Evil", "pythonClassName": "{known}",'
        ' "featuresDict": {"features": {}}}'
    )
    with pytest.raises(UserError, match="'pythonClassName' twice"):
        reader.check_features(tmp_path)


def test_damaged_files_are_one_error_that_names_the_folder(
    data_dir, cache, monkeypatch
):
    write_archive("cifar10", data_dir, monkeypatch)
    assert cli.main(["prepare", "cifar10"]) == 0
    folder = data_dir / "cifar10/3.0.2"
    (shard,) = folder.glob("*train.array_record*")
    labels = folder / "label.labels.txt"
    features = json.loads((folder / "features.json").read_text())
    features["featuresDict"]["features"]["image"]["image"] = {}
    flipped = bytearray(shard.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    for path, content in (
        (shard, None),
        (shard, b""),
        (shard, shard.read_bytes()[: shard.stat().st_size // 2]),
        (shard, bytes(flipped)),
        (labels, None),
        (labels, b"only\none\n"),
        (folder / "dataset_info.json", b'{"fileFormat": "array_record", "name": 3}'),
        (folder / "features.json", json.dumps(features).encode()),
    ):
        before = path.read_bytes()
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(UserError, match=f"{folder} is damaged .*prepare"):
            registry.load("cifar10", cache)
        path.write_bytes(before)
    assert registry.load("cifar10", cache).num_train == 5 * PER_FILE


@pytest.mark.parametrize("content", [b"", b"null", b"\xff", b"[" * 100_000, b"{}"])
def test_damaged_metadata_are_named(content, data_dir, cache):
    folder = data_dir / "cifar10/3.0.2"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text('{"fileFormat": "array_record"}')
    (folder / "features.json").write_bytes(content)
    with pytest.raises(UserError, match=r"features\.json "):
        registry.load("cifar10", cache)
    (folder / "dataset_info.json").write_bytes(content)
    with pytest.raises(UserError, match=r"dataset_info\.json is damaged|has tfrecord"):
        registry.load("cifar10", cache)
