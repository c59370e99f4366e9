"""The cache of decoded arrays: used only if it is intact and up to date."""

import numpy as np
import pytest

from train.data import cache as array_cache

ARRAYS = {
    "images": np.arange(600, dtype=np.uint8).reshape(10, 60),
    "labels": np.ones(3),
}


@pytest.fixture
def folder(tmp_path):
    array_cache.write(tmp_path / "a" / "b", ARRAYS, {"fingerprint": "1", "more": [2]})
    return tmp_path / "a" / "b"


def test_written_arrays_and_record_are_read_back(folder):
    arrays, record = array_cache.read(folder, "1")
    assert arrays.keys() == ARRAYS.keys()
    for name, array in arrays.items():
        assert array.dtype == ARRAYS[name].dtype
        np.testing.assert_array_equal(array, ARRAYS[name])
    assert record["more"] == [2]
    assert sorted(path.name for path in folder.iterdir()) == [
        "arrays.npz",
        "record.json",
    ]


def test_a_cache_of_another_source_is_not_read(folder):
    assert array_cache.read(folder, "2") is None


def test_a_missing_cache_reads_as_none(tmp_path):
    assert array_cache.read(tmp_path / "none", "1") is None


@pytest.mark.parametrize("place", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_a_flipped_bit_is_noticed(folder, place):
    path = folder / "arrays.npz"
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)
    assert array_cache.read(folder, "1") is None


@pytest.mark.parametrize("name", ["arrays.npz", "record.json"])
@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: cut(path)])
def test_a_missing_or_truncated_file_is_noticed(folder, name, damage):
    damage(folder / name)
    assert array_cache.read(folder, "1") is None


def test_a_record_nested_too_deeply_is_noticed(folder):
    (folder / "record.json").write_text("[" * 100_000)
    assert array_cache.read(folder, "1") is None


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def test_writing_again_replaces_the_cache(folder):
    array_cache.write(folder, {"images": np.zeros(2)}, {"fingerprint": "2"})
    assert array_cache.read(folder, "1") is None
    assert list(array_cache.read(folder, "2")[0]) == ["images"]
