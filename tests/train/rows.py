"""A row of metrics as a run writes it."""


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
