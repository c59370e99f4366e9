"""Evaluation against plain NumPy: every test sample counts exactly once."""

import functools

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from train.data.images.augment import Augmentation
from train.data.types import Preprocessing
from train.training import parallel
from train.training.evaluate import evaluate
from train.training.state import create_state


class Linear(nn.Module):
    """Logits from one matrix, which NumPy can compute, too."""

    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(self.num_classes, use_bias=False)(x.reshape(x.shape[0], -1))


def scores(logits, labels):
    """Mean loss, top-1 and top-5 accuracy, in NumPy float64."""
    shifted = logits - logits.max(-1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    ranks = (logits > logits[np.arange(len(labels)), labels][:, None]).sum(-1)
    return {
        "loss": -log_probs[np.arange(len(labels)), labels].mean(),
        "top1": (ranks < 1).mean(),
        "top5": (ranks < 5).mean(),
    }


@pytest.mark.parametrize(
    ("strategy", "num_samples", "batch_size", "num_classes"),
    [
        ("jit", 37, 16, 10),
        ("jit", 32, 16, 10),
        ("jit", 5, 5, 3),
        ("pmap", 37, 16, 10),
    ],
)
def test_scores_are_means_over_all_samples(
    strategy, num_samples, batch_size, num_classes
):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_samples, 4, 4, 1), dtype=np.uint8)
    labels = rng.integers(0, num_classes, num_samples).astype(np.int32)
    devices = parallel.create(strategy)
    state = create_state(
        Linear(num_classes), optax.identity(), jax.random.key(0), (4, 4, 1)
    )
    program = devices.compile(
        functools.partial(
            evaluate,
            batch_size=batch_size,
            # Augmentation is for training: it must not be applied here.
            preprocessing=Preprocessing((0.4,), (0.2,), Augmentation(2, True)),
            axis_name=devices.axis_name,
            local_shard=devices.local_shard,
            num_classes=num_classes,
        )
    )

    got = program(*devices.replicate((state, images, labels)))

    inputs = ((images / 255 - 0.4) / 0.2).reshape(num_samples, -1)
    kernel = np.asarray(state.params["Dense_0"]["kernel"], np.float64)
    for name, expected in scores(inputs @ kernel, labels).items():
        assert float(got[name]) == pytest.approx(expected, rel=1e-5), name
    confusion = np.zeros((num_classes, num_classes), int)
    np.add.at(confusion, (labels, (inputs @ kernel).argmax(-1)), 1)
    np.testing.assert_array_equal(got["confusion"], confusion)
