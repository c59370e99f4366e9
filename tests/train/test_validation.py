"""Training images set aside to pick the best epoch, and averaged weights."""

import dataclasses

import jax
import numpy as np
import pytest

import train as application
from train import cli
from train.data.types import Split
from train.errors import UserError
from train.inference.load import restore
from train.run import folder as run_folder
from train.run import metrics, validation
from train.run.command import _best_epoch
from train.training.state import AveragedTrainState, with_average, without_average

from .results import edited_record, without_times

OPTIONS = "--batch-size 8 --epochs 3 --parallel jit"


@pytest.mark.parametrize(
    "counts", [(48, 48, 48), (5, 100, 1), (1, 1, 1), (0, 7, 93), (999, 1, 10)]
)
@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.9])
def test_each_class_has_its_share(counts, fraction):
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(3), counts))
    number = max(1, round(fraction * len(labels)))
    chosen = validation.choose(labels, number, seed=3)
    assert len(set(chosen.tolist())) == number
    assert np.all(np.diff(chosen) > 0)
    for label, count in enumerate(counts):
        found = np.sum(labels[chosen] == label)
        assert abs(found - count * number / len(labels)) < 1 + 1e-9


def test_the_choice_depends_on_the_seed():
    labels = np.arange(200) % 3
    first, again, other = (validation.choose(labels, 20, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert set(first) != set(other)


def test_every_training_image_is_in_exactly_one_part(small_dataset):
    numbered = np.arange(48, dtype=np.uint8).reshape(48, 1, 1, 1)
    dataset = dataclasses.replace(
        small_dataset, train=Split(numbered, small_dataset.train.labels)
    )
    train, aside = validation.split(dataset, 0.25, seed=0)
    assert (train.num_train, aside.num_test) == (36, 12)
    both = [*train.train.images.ravel(), *aside.test.images.ravel()]
    assert sorted(both) == list(range(48))
    labels = dataset.train.labels
    for part in (train.train, aside.test):
        np.testing.assert_array_equal(part.labels, labels[part.images.ravel()])
    assert train.test is dataset.test


def test_images_that_are_read_on_demand_are_chosen_by_index():
    class Recorded(validation.Records):
        def read(self, indices):
            return [validation.Record(b"", index) for index in indices]

    chosen = np.array([1, 4, 7])
    subset = validation.Subset(Recorded("folder", "train", 10), chosen)
    assert len(subset) == 3
    assert [record.label for record in subset.read([2, 0])] == [7, 1]


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_a_fraction_that_leaves_a_part_empty_is_an_error(small_dataset, fraction):
    with pytest.raises(UserError, match="--validation-fraction .* leaves none to"):
        validation.split(small_dataset, fraction, seed=0)


def test_the_best_epoch_is_picked_on_validation_images_if_there_are_any():
    rows = [{"test_top1": 0.5, "val_top1": 0.9}, {"test_top1": 0.8, "val_top1": 0.7}]
    assert metrics.best(rows) is rows[0]
    assert metrics.selected_on(rows[0]) == "validation"
    rows[0]["epoch"] = 3
    assert _best_epoch(rows) == "\nBest epoch 3, selected on the validation images"
    for row in rows:
        del row["val_top1"]
    assert metrics.best(rows) is rows[1]


def test_the_latest_of_equal_epochs_is_the_best():
    rows = [{"test_top1": top1} for top1 in (0.5, 0.7, 0.7, 0.6)]
    assert metrics.best(rows) is rows[2]
    assert metrics.selected_on(rows[0]) == "test"


def test_a_run_prints_which_images_selected_its_best_epoch(
    tiny_setting, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    options = [*OPTIONS.split(), "--validation-fraction", "0.25", "--ema-decay", "0.9"]
    assert cli.main([*options, "--run-dir", "run"]) == 0
    out = capsys.readouterr().out
    assert "36 training, 12 validation, 20 test images" in out
    assert "validation top-1" in out
    assert "not averaged" in out
    rows = without_times(tmp_path / "run")
    assert rows[-1]["step"] == 3 * (36 // 8)
    best = max(reversed(rows), key=lambda row: row["val_top1"])  # The latest of equals.
    assert "Test accuracy of the averaged weights" in out
    assert f"after epoch {best['epoch']}, selected on the validation images" in out
    assert all({"val_loss", "val_top5", "raw_test_top1"} <= row.keys() for row in rows)

    # The best checkpoint is that epoch's, and its averaged weights are evaluated.
    assert cli.main(["eval", "run", "--checkpoint", "best"]) == 0
    output = capsys.readouterr().out
    assert f"step {best['step']}, averaged weights" in output
    assert f"top-1 {100 * best['test_top1']:.2f} %" in output
    state = restore(run_folder.load(tmp_path / "run"), "latest").state
    assert isinstance(state, AveragedTrainState)
    loaded = application.load_run("run").variables["params"]
    jax.tree.map(np.testing.assert_array_equal, loaded, state.average["params"])
    distances = jax.tree.map(lambda a, b: np.abs(a - b).max(), loaded, state.params)
    assert max(jax.tree.leaves(distances)) > 0

    # A resumed run equals one that was never stopped.
    assert cli.main([*options, "--epochs", "1", "--run-dir", "half"]) == 0
    assert cli.main(["--resume", "half", "--epochs", "3"]) == 0
    assert without_times(tmp_path / "half") == rows

    # A run whose record lacks these options can still be resumed.
    assert cli.main([*OPTIONS.split(), "--epochs", "1", "--run-dir", "plain"]) == 0
    with edited_record(tmp_path / "plain") as record:
        for name in (
            "validation_fraction",
            "ema_decay",
            "label_smoothing",
            "clip_norm",
        ):
            del record["config"][name]
    assert cli.main(["--resume", "plain", "--epochs", "2"]) == 0
    assert "selected on the test images" in capsys.readouterr().out


def test_the_average_matches_the_formula_written_out():
    tree = {"params": {"w": np.float32(1)}, "batch_stats": {"mean": np.float32(2)}}

    from train.training.state import TrainState

    state = TrainState(
        step=0,
        apply_fn=None,
        params=tree["params"],
        tx=None,
        opt_state=(),
        batch_stats=tree["batch_stats"],
    )
    state = with_average(state)
    expected = 1.0
    for step in range(1, 200):
        w = float(np.sin(step))
        state = state.replace(step=step, params={"w": np.float32(w)}).updated(0.9)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * w
    assert float(state.variables["params"]["w"]) == pytest.approx(expected, rel=1e-4)
    assert float(state.variables["batch_stats"]["mean"]) == pytest.approx(2)
    assert without_average(state).variables["params"] == {"w": np.float32(w)}
