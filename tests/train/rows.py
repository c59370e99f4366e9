"""The rows of metrics that a run writes."""

from train.run import metrics


def without_times(path):
    """The metrics of a run in this folder but for the time they took."""
    return [
        {name: value for name, value in row.items() if name != "seconds"}
        for row in metrics.read(path / "metrics.jsonl")
    ]


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
