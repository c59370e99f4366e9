"""A trained network in a user's script: `train.load_run`."""

import dataclasses

import jax
import numpy as np
import pytest

import train
from tests.docs import python_blocks, run_block
from train import cli
from train.errors import UserError
from train.run import metrics

from .results import edited_record

pytestmark = pytest.mark.usefixtures("tiny_setting")


@pytest.fixture
def without_data(monkeypatch):
    """Makes the run's data unavailable."""

    def load():
        raise UserError("There are no digits here.")

    monkeypatch.setattr("train.data.digits.load", load)


def change_record(path, change):
    with edited_record(path) as record:
        change(record)


def test_predictions_of_a_loaded_network_match_the_run_s_metrics(
    run_dir, small_dataset, without_data
):
    run = train.load_run(run_dir)

    images, labels = small_dataset.test
    probabilities = run.predict(images, batch_size=8)  # The last of three is padded.
    assert probabilities.shape == (20, 3)
    row = metrics.read(run_dir / "metrics.jsonl")[-1]
    right = probabilities.argmax(-1) == labels
    losses = -np.log(probabilities[np.arange(20), labels])
    assert right.mean() == pytest.approx(row["test_top1"])
    assert losses.mean() == pytest.approx(row["test_loss"], rel=1e-5)
    assert run.class_names == ("a", "b", "c")
    assert run.image_shape == (8, 8, 1)
    assert run.preprocessing[:2] == small_dataset.preprocessing[:2]
    assert (run.step, run.config.epochs) == (6, 2)
    assert run.predict(images[:0]).shape == (0, 3)
    with pytest.raises(ValueError, match=r"uint8 of shape \(batch, 8, 8, 1\), got"):
        run.predict(images / 255)
    with pytest.raises(ValueError, match=r"got uint8 of shape \(8, 8, 1\)"):
        run.predict(images[0])
    normalized = jax.jit(run.preprocess)(images)
    np.testing.assert_allclose(normalized, (images / 255 - 0.3) / 0.25, atol=1e-5)


def test_images_of_other_channels_cannot_be_decoded(run_dir):
    run = dataclasses.replace(train.load_run(run_dir), image_shape=(8, 8, 4))
    with pytest.raises(UserError, match="takes images of 4 channels, which cannot"):
        run.decode(b"")


def test_the_best_checkpoint_can_be_loaded(run_dir):
    rows = metrics.read(run_dir / "metrics.jsonl")
    best = max(rows, key=lambda row: (row["test_top1"], row["step"]))
    assert train.load_run(str(run_dir), "best").step == best["step"]
    with pytest.raises(ValueError, match="'latest' or 'best', got 'last'"):
        train.load_run(run_dir, "last")


def test_a_damaged_checkpoint_is_skipped_with_a_warning(run_dir):
    (run_dir / "checkpoints/6/_CHECKPOINT_METADATA").write_text("{}")
    with pytest.warns(UserWarning, match=r"6 is damaged.* Step 3 is used instead\."):
        assert train.load_run(run_dir).step == 3


def test_a_record_without_normalization_takes_that_of_the_data(
    run_dir, small_dataset, monkeypatch
):
    change_record(run_dir, lambda record: record.pop("preprocessing"))
    assert train.load_run(run_dir).preprocessing[:2] == ((0.3,), (0.25,))

    def missing():
        raise UserError("There are no digits here.")

    with monkeypatch.context() as patch:
        patch.setattr("train.data.digits.load", missing)
        with pytest.raises(UserError, match="from the dataset: There are no digits"):
            train.load_run(run_dir)
    assert cli.main(["--resume", str(run_dir)]) == 0  # This records it.
    with monkeypatch.context() as patch:
        patch.setattr("train.data.digits.load", missing)
        assert train.load_run(run_dir).preprocessing[:2] == ((0.3,), (0.25,))


def test_a_folder_that_is_not_a_complete_run_is_an_error_and_unchanged(
    run_dir, tmp_path
):
    with pytest.raises(UserError, match="is not a run folder"):
        train.load_run(tmp_path)
    (run_dir / "checkpoints").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="has no checkpoint yet"):
        train.load_run(run_dir)
    assert not (run_dir / "checkpoints").exists()
    change_record(run_dir, lambda record: record["dataset"].pop("image_shape"))
    with pytest.raises(UserError, match="its 'dataset' has no 'image_shape'"):
        train.load_run(run_dir)


def test_the_guide_loads_a_run(run_dir, small_dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    run_dir.rename(tmp_path / "runs/NAME")
    np.save(tmp_path / "images.npy", small_dataset.test.images)
    load, use, *_ = python_blocks("docs/trained_models.md")
    namespace = {}
    names = run_block(load, namespace).split()
    assert len(names) == 20
    assert set(names) <= set("abc")
    run_block(use, namespace)
    assert namespace["logits"].shape == (20, 3)


def test_the_module_lists_its_public_names():
    assert {"load_run", "TrainedModel"} <= set(dir(train))
    with pytest.raises(AttributeError, match="no attribute 'load'"):
        _ = train.load
