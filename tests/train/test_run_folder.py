"""Run folders: never overwritten, and read back."""

import dataclasses
import json
import os
import random

import pytest

from train import files, provenance
from train.errors import UserError
from train.run import folder as run_folder
from train.run_config import RunConfig

DATA = {"name": "digits", "train_images": 3, "class_names": ["a", "b"]}


def test_each_new_run_gets_a_folder_of_its_own(tmp_path):
    config = RunConfig(runs_dir=tmp_path / "runs")
    names = [run_folder.create(config, DATA).path.name for _ in range(3)]
    assert names == [config.readable_name + end for end in ("", "-2", "-3")]


def test_a_folder_that_is_not_empty_is_left_unchanged(tmp_path):
    (tmp_path / "precious").write_text("!")
    with pytest.raises(
        UserError, match="already exists and was left unchanged.*--resume"
    ):
        run_folder.create(RunConfig(run_dir=tmp_path), DATA)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
    with pytest.raises(UserError, match="precious is a file. Move it away"):
        run_folder.create(RunConfig(run_dir=tmp_path / "precious"), DATA)


def test_an_empty_folder_may_be_given(tmp_path):
    assert run_folder.create(RunConfig(run_dir=tmp_path), DATA).path == tmp_path


def test_a_folder_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be created: .*--run-dir"):
        run_folder.create(RunConfig(runs_dir=tmp_path / "file"), DATA)
    with pytest.raises(UserError, match="file cannot be created: File exists. Use"):
        run_folder.make(tmp_path / "file", exist_ok=True)


def test_options_are_read_back(tmp_path):
    config = RunConfig(
        dataset="folder:/data/pets",
        optimizer="sgd",
        schedule="steps",
        milestones=(3, 5),
        runs_dir=tmp_path,
        cache_dir=tmp_path / "cache",
    )
    path = run_folder.create(config, DATA).path
    loaded = run_folder.load(path)
    # The default is recorded, so that a later change of it changes no run.
    assert loaded.config == dataclasses.replace(config, learning_rate=0.1)
    environment = json.loads((path / "record.json").read_text())["environment"]
    assert environment["versions"]["jax"]
    assert environment["command"].startswith("python -m train")


def test_only_changed_options_are_recorded(tmp_path):
    config = RunConfig(runs_dir=tmp_path, run_dir=tmp_path / "run", epochs=2)
    path = run_folder.create(config, DATA).path
    before = (path / "record.json").stat().st_ino
    resumed = dataclasses.replace(config, run_dir=None, resume=path)
    run_folder.load(path).record_options(resumed)
    assert (path / "record.json").stat().st_ino == before  # Nothing was written.
    run_folder.load(path).record_options(dataclasses.replace(resumed, epochs=9))
    assert run_folder.load(path).config == dataclasses.replace(
        config, epochs=9, learning_rate=0.1
    )


def test_a_folder_that_is_not_a_run_is_an_error(tmp_path):
    with pytest.raises(UserError, match="is not a run folder"):
        run_folder.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is not JSON"),
        (b"{", "it is not JSON"),
        (b"\x89PNG\xff\x00", "it is not JSON"),
        (b"null", "it is null, not an object"),
        (b"[]", "it is a list, not an object"),
        (b"[" * 100_000, "it is nested too deeply"),
        (b"{}", "it has no 'config'"),
        (b'{"config": null, "dataset": {}}', "its 'config' is null, not an object"),
        (b'{"config": {}, "dataset": 3}', "its 'dataset' is a number"),
        (b'{"config": {}, "dataset": {}}', "it has no 'milestones'"),
        (b'{"config": {}, "dataset": {}, "resumed": 1}', "its 'resumed' is a number"),
        (b'{"config": {}, "dataset": {}, "resumed": [1]}', "its 'resumed[0]' is a num"),
        (b'{"config": {"no_option": 1}, "dataset": {}}', "'config.no_option' is no"),
    ],
)
def test_a_damaged_record_is_an_error(tmp_path, content, words):
    (tmp_path / "record.json").write_bytes(content)
    with pytest.raises(UserError, match=r"record\.json is damaged") as error:
        run_folder.load(tmp_path)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("epochs", "9", "'config.epochs' is \"9\", not a whole number"),
        ("epochs", True, "'config.epochs' is true, not a whole number"),
        ("epochs", 0, "--epochs must be"),
        ("batch_norm", 1, "'config.batch_norm' is 1, not true or false"),
        ("momentum", None, "'config.momentum' is null, not a number"),
        ("scope", "all", "is \"all\", not one of 'kernel', 'layer'"),
        ("milestones", [1, "x"], "not a list, each entry a whole number"),
        ("model_options", {}, "'config.model_options' is {}, not a list"),
        ("runs_dir", 3, "'config.runs_dir' is 3, not a path"),
        ("cache_dir", [], "'config.cache_dir' is [], not a path or null"),
        ("optimizer", "sdg", "unknown optimizer 'sdg'"),
        ("dataset", "cifar11", "unknown dataset 'cifar11'"),
    ],
)
def test_an_invalid_field_of_the_record_is_named(tmp_path, name, value, words):
    path = run_folder.create(RunConfig(runs_dir=tmp_path), DATA).path
    values = json.loads((path / "record.json").read_text())
    values["config"][name] = value
    (path / "record.json").write_text(json.dumps(values))
    with pytest.raises(UserError) as error:
        run_folder.load(path)
    assert words in str(error.value)


@pytest.mark.parametrize("part", ["dataset", "environment"])
def test_other_parts_of_the_record_are_checked(tmp_path, part):
    path = run_folder.create(RunConfig(runs_dir=tmp_path), DATA).path
    values = json.loads((path / "record.json").read_text())
    values[part] |= {"fingerprint": 3, "devices": "TPU"}
    (path / "record.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=rf"'{part}\.\w+' is "):
        run_folder.load(path)


@pytest.mark.parametrize(
    ("part", "name", "value", "words"),
    [
        ("dataset", "train_images", 0, "'dataset.train_images' is 0, not at least 1"),
        ("dataset", "image_shape", [], "'dataset.image_shape' is [], not a height"),
        ("dataset", "image_shape", [8, 8], "'dataset.image_shape' is [8, 8], not"),
        ("dataset", "image_shape", [8, 0, 1], "'dataset.image_shape' is [8, 0, 1]"),
        ("dataset", "class_names", [], "'dataset.class_names' is empty"),
        ("preprocessing", "mean", [], "'preprocessing.mean' is [], not a number for"),
        ("preprocessing", "mean", [1e999], "is not JSON"),
        ("preprocessing", "std", [1, 2], "'preprocessing.std' is [1, 2], not"),
        ("preprocessing", "std", [0.0], "'preprocessing.std' is [0.0], not above 0"),
        ("preprocessing", "std", None, "'preprocessing.std' is null, not a list"),
    ],
)
def test_impossible_values_of_the_data_are_named(tmp_path, part, name, value, words):
    data = DATA | {"test_images": 3, "image_shape": [8, 8, 1]}
    normalization = {"mean": [0.5], "std": [0.25]}
    config = RunConfig(runs_dir=tmp_path)
    path = run_folder.create(config, data, preprocessing=normalization).path
    values = json.loads((path / "record.json").read_text())
    values[part][name] = value
    (path / "record.json").write_text(json.dumps(values))
    with pytest.raises(UserError) as error:
        run_folder.load(path)
    assert words in str(error.value)
    del values[part][name]
    (path / "record.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=f"has no '{name}'|do not match its 'sha256'"):
        run_folder.load(path)


def test_no_flipped_bit_of_a_record_silently_changes_it(tmp_path):
    path = run_folder.create(RunConfig(runs_dir=tmp_path), DATA).path
    file, rng = path / "record.json", random.Random(0)
    content, expected = file.read_bytes(), run_folder.load(path).record
    noticed = 0
    for _ in range(300):
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(flipped)
        try:
            assert run_folder.load(path).record == expected
        except UserError:
            noticed += 1
    assert noticed > 200


def test_a_flipped_bit_in_the_name_of_the_checksum_is_an_error(tmp_path):
    path = run_folder.create(RunConfig(runs_dir=tmp_path), DATA).path
    content = (path / "record.json").read_text()
    (path / "record.json").write_text(content.replace('"sha256"', '"shq256"'))
    with pytest.raises(UserError, match="its 'shq256' is not part of a record"):
        run_folder.load(path)


def test_an_edited_record_is_read_without_its_checksum(tmp_path):
    path = run_folder.create(RunConfig(runs_dir=tmp_path), DATA).path
    values = json.loads((path / "record.json").read_text())
    values["config"]["cache_dir"] = "elsewhere"
    (path / "record.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="if you edited it, remove its 'sha256'"):
        run_folder.load(path)
    del values["sha256"]
    (path / "record.json").write_text(json.dumps(values))
    folder = run_folder.load(path)
    assert str(folder.config.cache_dir) == "elsewhere"
    folder.record_environment(provenance.describe(3, "jit"))
    assert run_folder.load(path).environments[-1]["chunk_steps"] == 3


def test_a_failed_write_leaves_no_record(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("train.files.os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        run_folder.create(RunConfig(run_dir=tmp_path / "run"), DATA)
    assert list((tmp_path / "run").iterdir()) == []


def test_without_hard_links_a_record_is_still_created_once(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("train.files.os.link", fail)
    folder = run_folder.create(RunConfig(run_dir=tmp_path / "run"), DATA)
    assert run_folder.load(folder.path).config.run_dir == folder.path
    names = sorted(path.name for path in folder.path.iterdir())
    assert names == ["config.yaml", "record.json"]
    with pytest.raises(FileExistsError):
        files.create(folder.path / "record.json", b"")


def test_a_record_that_cannot_be_created_leaves_no_file(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr("train.files.os.link", fail)
    with pytest.raises(OSError, match="quota"):
        files.create(tmp_path / "record.json", b"{}")
    monkeypatch.setattr("train.files._NO_HARD_LINKS", {122})
    monkeypatch.setattr("train.files.os.replace", fail)
    with pytest.raises(OSError, match="quota"):
        files.create(tmp_path / "record.json", b"{}")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} is not a regular file"):
        files.read(tmp_path)


def test_a_partial_file_of_a_killed_command_does_not_count_as_content(tmp_path):
    (tmp_path / ".partial-0123").write_text("{")
    assert run_folder.create(RunConfig(run_dir=tmp_path), DATA).path == tmp_path


def test_a_pipe_in_place_of_a_record_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "record.json")
    with pytest.raises(UserError, match="is not a regular file"):
        run_folder.load(tmp_path)


def test_other_data_are_noticed(tmp_path):
    folder = run_folder.create(RunConfig(runs_dir=tmp_path), DATA)
    folder.check_dataset(DATA)
    with pytest.raises(UserError, match="train_images was 3, is 4"):
        folder.check_dataset(DATA | {"train_images": 4})


def test_replaced_images_are_noticed_if_a_fingerprint_was_recorded(tmp_path, capsys):
    now = DATA | {"fingerprint": "b"}
    folder = run_folder.create(RunConfig(runs_dir=tmp_path), DATA | {"fingerprint": ""})
    with pytest.raises(UserError, match="images, labels or file names have changed"):
        folder.check_dataset(now)
    folder.warn_without_fingerprint()
    assert capsys.readouterr().err == ""

    old = run_folder.create(RunConfig(runs_dir=tmp_path), DATA)
    old.check_dataset(now)
    old.warn_without_fingerprint()
    assert "without a fingerprint of the data" in capsys.readouterr().err


def test_a_folders_files_are_compared_if_its_pixels_were_not_recorded(tmp_path):
    now = DATA | {"fingerprint": "pixels", "files": "files"}
    old = run_folder.create(
        RunConfig(runs_dir=tmp_path), DATA | {"fingerprint": "files"}
    )
    old.check_dataset(now)
    with pytest.raises(UserError, match="have changed"):
        old.check_dataset(now | {"files": "others"})
    new = run_folder.create(RunConfig(runs_dir=tmp_path), now)
    new.check_dataset(now)
    with pytest.raises(UserError, match="have changed"):
        new.check_dataset(now | {"fingerprint": "others"})


NOW = {
    "commit": "b",
    "devices": ["cpu", "cpu"],
    "parallel": "mesh",
    "cores": 2,
    "chunk_steps": 1,
    "versions": {
        "jax": "0.10.2",
        "jaxlib": "1",
        "flax": "1",
        "optax": "1",
        "insgd_optax": "2",
    },
}


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        (NOW, []),
        ({}, []),
        (NOW | {"cores": 8}, ["CPU cores changed from 8 to 2"]),
        (NOW | {"devices": ["cpu"]}, ["devices changed from 1 x cpu to 2 x cpu"]),
        (
            NOW | {"chunk_steps": 50},
            ["steps per compiled call changed from 50 to 1"],
        ),
        (NOW | {"parallel": "pmap"}, ["device strategy changed from pmap to mesh"]),
        (NOW | {"commit": "a"}, ["commit changed from a to b"]),
        (NOW | {"versions": {"jax": "0.9"}}, ["jax changed from 0.9 to 0.10.2"]),
        (NOW | {"versions": {"insgd_optax": "1"}}, ["insgd_optax changed from 1 to 2"]),
    ],
)
def test_changes_that_may_affect_the_last_bits_are_listed(recorded, expected):
    assert provenance.changes(recorded, NOW) == expected


def test_a_change_of_cores_is_not_listed_for_an_accelerator():
    now = NOW | {"devices": ["NVIDIA H100"]}
    assert provenance.changes(now | {"cores": 8}, now) == []


def test_a_resume_in_another_environment_is_recorded_with_a_warning(tmp_path, capsys):
    path = run_folder.create(RunConfig(runs_dir=tmp_path), DATA, NOW).path

    def resume(**environment):
        run_folder.load(path).record_environment(NOW | environment)
        return capsys.readouterr().err

    assert resume(command="python -m train --resume") == ""
    assert run_folder.load(path).environments == [NOW]
    warning = resume(cores=8)
    assert "Warning: CPU cores changed from 2 to 8. From here on" in warning
    assert resume(cores=8) == ""
    assert run_folder.load(path).environments == [NOW, NOW | {"cores": 8}]


@pytest.mark.parametrize(
    ("before", "after", "differ"),
    [
        ({"parallel": "mesh"}, {"parallel": "shard_map"}, True),
        ({"parallel": "pmap"}, {"parallel": "shard_map"}, False),
        ({"parallel": "pmap"}, {"parallel": "pmap", "devices": ["cpu"]}, True),
        ({"parallel": "mesh"}, {"parallel": "mesh", "devices": ["cpu"]}, False),
        ({"parallel": None}, {"parallel": "pmap"}, False),  # From an earlier version.
    ],
)
def test_different_dropout_masks_cause_a_warning(
    tmp_path, capsys, before, after, differ
):
    folder = run_folder.create(RunConfig(runs_dir=tmp_path), DATA, NOW | before)
    folder.record_environment(NOW | after)
    assert ("Dropout masks differ" in capsys.readouterr().err) == differ


def test_two_commands_cannot_both_create_a_run_in_an_empty_folder(
    tmp_path, monkeypatch
):
    run_folder.create(RunConfig(run_dir=tmp_path), DATA)
    monkeypatch.setattr(run_folder, "_is_new", lambda path: True)
    with pytest.raises(UserError, match="already exists and was left unchanged"):
        run_folder.create(RunConfig(run_dir=tmp_path), DATA)
