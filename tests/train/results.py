"""Results of a run: its metrics, record, and the arrays of its last checkpoint."""

import contextlib
import json

import jax

from train.run import folder as run_folder
from train.run import metrics
from train.run.checkpoints import Checkpoints
from train.run.experiment import Experiment


def without_times(path):
    """The metrics of the run in this folder, without times."""
    return [
        {name: value for name, value in row.items() if name != "seconds"}
        for row in metrics.read(path / "metrics.jsonl")
    ]


@contextlib.contextmanager
def edited_record(path):
    """Edits a run's record, and drops its checksum, as in earlier versions."""
    record = json.loads((path / "record.json").read_text())
    record.pop("sha256", None)
    yield record
    (path / "record.json").write_text(json.dumps(record))


def row(epoch, **changes):
    """An epoch's metrics, some of them changed or added."""
    return {
        "epoch": epoch,
        "step": 3 * epoch,
        "learning_rate": 0.1,
        "train_loss": 0.5,
        "train_top1": 0.5,
        "test_loss": 0.5,
        "test_top1": 0.5,
        "test_top5": 0.75,
    } | changes


def final_state(path):
    """The latest checkpoint of the run in this folder: its step and its arrays."""
    config = run_folder.load(path).config
    dataset = config.load_dataset()
    checkpoints = Checkpoints(path / "checkpoints")
    like = Experiment(config, dataset).start().to_checkpoint()
    restored = checkpoints.restore_latest(like=like)
    checkpoints.close()
    return restored.step, jax.device_get(jax.tree.leaves(restored.tree))
