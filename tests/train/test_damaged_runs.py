"""Runs whose folder was damaged: said, repaired, and gone on with bit for bit."""

import jax
import numpy as np
import pytest

from train import cli
from train.data import digits
from train.run import folder as run_folder
from train.run import metrics
from train.run.checkpoints import Checkpoints
from train.run.experiment import Experiment

pytestmark = pytest.mark.usefixtures("tiny_setting")


def train(*options):
    return cli.main(["--parallel", "jit", "--batch-size", "16", *options])


@pytest.fixture
def run(tmp_path, capsys):
    """The folder of a run of three epochs, of three steps each."""
    path = tmp_path / "run"
    assert train("--epochs", "3", "--run-dir", str(path)) == 0
    capsys.readouterr()
    return path


def rows(path):
    """The metrics of a run but for the time they took."""
    return [
        {name: value for name, value in row.items() if name != "seconds"}
        for row in metrics.read(path / "metrics.jsonl")
    ]


def final_state(path):
    """The latest checkpoint of a run: its step and all its arrays."""
    checkpoints = Checkpoints(path / "checkpoints")
    experiment = Experiment(run_folder.load(path).config, digits.load())
    restored = checkpoints.restore_latest(like=experiment.start())
    checkpoints.close()
    return restored.step, jax.device_get(jax.tree.leaves(restored.tree))


def damage(path, step):
    """Cuts the metadata of a checkpoint."""
    file = path / f"checkpoints/{step}/_CHECKPOINT_METADATA"
    file.write_bytes(file.read_bytes()[:-9])


def test_resume_goes_back_to_the_last_good_checkpoint_bit_for_bit(run, capsys):
    expected_rows, (step, expected) = rows(run), final_state(run)
    assert step == 9
    damage(run, 9)

    assert train("--resume", str(run)) == 0

    out, err = capsys.readouterr()
    aside = run / "damaged-checkpoints/9"
    assert f"The checkpoint {run}/checkpoints/9 is damaged" in err
    assert f"moved to {aside}, and the run goes back to step 6." in err
    assert "Going on from step 6." in out
    assert (aside / "_CHECKPOINT_METADATA").exists()
    assert rows(run) == expected_rows
    step, found = final_state(run)
    assert step == 9
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_eval_goes_back_too_and_moves_nothing(run, capsys):
    damage(run, 9)
    assert cli.main(["eval", str(run)]) == 0
    out, err = capsys.readouterr()
    assert "checkpoints/9 is damaged" in err
    assert "Evaluating step 6 instead." in err
    assert "latest checkpoint, step 6, on" in out
    assert (run / "checkpoints/9").exists()


def test_without_a_good_checkpoint_nothing_is_moved_and_the_status_is_2(run, capsys):
    before = sorted(path.name for path in (run / "checkpoints").iterdir())
    for step in before:
        damage(run, step)
    for command in (["--resume", str(run)], ["eval", str(run)]):
        assert cli.main(command) == 2
        err = capsys.readouterr().err
        assert err.startswith("Error: The checkpoint")
        assert "No other checkpoint is left" in err
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == before
