"""Runs whose folder was damaged: reported, repaired, and resumed bit for bit."""

import json

import jax
import numpy as np
import pytest

from train import cli

from .results import final_state, without_times

pytestmark = pytest.mark.usefixtures("tiny_setting")


def train(*options):
    return cli.main(["--parallel", "jit", "--batch-size", "16", *options])


@pytest.fixture
def run(made_once, tmp_path, capsys):
    """The folder of a run of three epochs, of three steps each."""

    def make(path):
        assert train("--epochs", "3", "--run-dir", str(path)) == 0

    made_once("three epochs", make, tmp_path / "run")
    capsys.readouterr()
    return tmp_path / "run"


def damage(path, step):
    """Cuts the metadata of a checkpoint."""
    file = path / f"checkpoints/{step}/_CHECKPOINT_METADATA"
    file.write_bytes(file.read_bytes()[:-9])


def test_resume_goes_back_to_the_last_good_checkpoint_bit_for_bit(run, capsys):
    expected_rows, expected = without_times(run), final_state(run)
    assert expected[0] == 9
    damage(run, 9)

    assert train("--resume", str(run)) == 0

    out, err = capsys.readouterr()
    aside = run / "damaged-checkpoints/9"
    assert f"The checkpoint {run}/checkpoints/9 is damaged" in err
    assert f"moved to {aside}, and the run resumes from step 6." in err
    assert "Resuming from step 6." in out
    assert (aside / "_CHECKPOINT_METADATA").exists()
    assert without_times(run) == expected_rows
    jax.tree.map(np.testing.assert_array_equal, final_state(run), expected)


def test_eval_uses_the_last_good_checkpoint_and_moves_nothing(run, capsys):
    damage(run, 9)
    assert cli.main(["eval", str(run)]) == 0
    out, err = capsys.readouterr()
    assert "checkpoints/9 is damaged" in err
    assert "Step 6 is used instead." in err
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


def test_damaged_metrics_are_named_and_restored(run, capsys):
    path = run / "metrics.jsonl"
    expected = path.read_bytes()
    first, second, third = expected.splitlines()
    for lines, words in (
        ([second, third], "lines 1, 2, 3 are missing or damaged"),
        ([first, second[:40], third], "line 2 is"),
        ([first, b"\xff\x00", third], "line 2 is"),
        ([first, b"null", third], "line 2 is"),
        ([first, second, b"[" * 100_000], "line 3 is"),
        ([first.replace(b"0", b"1", 1), second, third], "line 1 is"),
        (None, "lines 1, 2, 3 are"),
    ):
        path.unlink() if lines is None else path.write_bytes(b"\n".join(lines))
        assert train("--resume", str(run)) == 0
        assert f"{path}: {words}" in capsys.readouterr().err
        assert path.read_bytes() == expected


def test_a_damaged_line_after_the_checkpoint_is_named_and_its_epoch_rerun(run, capsys):
    expected = without_times(run)
    (run / "checkpoints/9").rename(run / "9")
    path = run / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    assert train("--resume", str(run)) == 0
    assert "line 3 is damaged. Training resumes from step 6" in capsys.readouterr().err
    assert without_times(run) == expected


def test_a_damaged_series_is_repaired(tmp_path, capsys):
    command = ["compare", "--optimizers", "sgd", "--epochs", "2", "--batch-size", "16"]
    command += ["--parallel", "jit", "--runs-dir", str(tmp_path)]
    assert cli.main(command) == 0
    (path,) = tmp_path.glob("digits-*/metrics.jsonl")
    expected = path.read_bytes()
    for content in (
        expected[:-30],
        expected.replace(b'"test_top1": 0.', b'"test_top1": 0.9'),
        b"",
    ):
        path.write_bytes(content)
        capsys.readouterr()
        assert cli.main(command) == 0
        out, err = capsys.readouterr()
        assert "0 of 1 runs are finished; 1 more was started." in out
        assert f"{path}: line" in err
        assert path.read_bytes() == expected


def as_earlier_version(path):
    """Rewrites a run's checkpoints as in earlier versions, without checksums."""
    for folder in (path / "checkpoints").iterdir():
        file = folder / "_CHECKPOINT_METADATA"
        metadata = json.loads(file.read_text())
        top1 = metadata["custom_metadata"]["test_top1"]
        file.write_text(json.dumps(metadata | {"custom_metadata": {}}))
        (folder / "metrics").mkdir()
        (folder / "metrics/metrics").write_text(json.dumps({"test_top1": top1}))


def test_a_run_of_an_earlier_version_resumes_and_warns_of_missing_checksums(
    run, capsys
):
    expected = without_times(run)
    as_earlier_version(run)
    assert cli.main(["eval", str(run), "--checkpoint", "best"]) == 0
    assert (
        "was saved by an earlier version without a checksum" in capsys.readouterr().err
    )

    assert train("--resume", str(run), "--epochs", "4") == 0
    assert capsys.readouterr().err.count("without a checksum") == 1
    assert without_times(run)[:3] == expected
    assert train("--resume", str(run), "--epochs", "5") == 0
    assert "without a checksum" not in capsys.readouterr().err


def test_metrics_that_an_earlier_version_lost_are_named(run, capsys):
    as_earlier_version(run)
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(lines[0] + b"{\n" + lines[2])
    assert train("--resume", str(run)) == 0
    err = capsys.readouterr().err
    assert "line 2 is damaged" in err
    assert "the metrics of epoch 2 are lost" in err

    (run / "metrics.jsonl").unlink()
    assert train("--resume", str(run)) == 0
    assert "metrics.jsonl was lost" in capsys.readouterr().out
