"""PyTorch's ResNet-20 matches the application's: its outputs and its training."""

import dataclasses

import jax
import numpy as np
import pytest

import models
from tests.train.stripes import stripes

torch = pytest.importorskip("torch")

from benchmarks.parts.pytorch import network, step_time, training
from benchmarks.parts.pytorch.images import Images
from benchmarks.task import Stopped
from train.benchmark.workload import Workload

OPTIONS = {"stage_sizes": (1, 1), "width": 4}


def test_it_has_as_many_parameters_as_ours():
    found = sum(weight.numel() for weight in network.resnet20().parameters())
    ours = jax.eval_shape(
        lambda rng, x: models.create("resnet20").init(rng, x, train=False),
        jax.random.key(0),
        np.zeros((1, 32, 32, 3), np.float32),
    )
    assert found == sum(leaf.size for leaf in jax.tree.leaves(ours["params"]))


@pytest.mark.parametrize("train", [False, True])
def test_with_the_same_weights_it_is_the_same_function(train):
    ours = models.create("resnet20", **OPTIONS)
    x = np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype(np.float32)

    @jax.jit
    def init_and_apply(rng):
        variables = ours.init(rng, x, train=False)
        logits, _ = ours.apply(variables, x, train=train, mutable=["batch_stats"])
        return variables["params"], logits

    params, expected = init_and_apply(jax.random.key(0))
    theirs = network.resnet20(**OPTIONS).train(train)
    network.load_flax(theirs, params)
    with torch.no_grad():
        got = theirs(torch.tensor(x).permute(0, 3, 1, 2))
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_weights_of_another_network_do_not_fit():
    ours = models.create("resnet20", stage_sizes=(1, 1, 1), width=4)
    x = np.zeros((1, 8, 8, 3), np.float32)
    variables = jax.eval_shape(
        lambda rng: ours.init(rng, x, train=False), jax.random.key(0)
    )
    with pytest.raises(ValueError, match="do not fit"):
        network.load_flax(network.resnet20(**OPTIONS), variables["params"])


@pytest.fixture
def dataset():
    """The stripes, with three channels."""
    found = stripes()
    splits = {
        name: split._replace(images=np.repeat(split.images, 3, axis=-1))
        for name, split in (("train", found.train), ("test", found.test))
    }
    preprocessing = found.preprocessing._replace(mean=(0.3,) * 3, std=(0.25,) * 3)
    return dataclasses.replace(found, **splits, preprocessing=preprocessing)


def test_images_are_cropped_flipped_and_normalized(dataset):
    images = Images(dataset, 16)
    batches = list(images.train_batches(0))
    assert [len(labels) for _, labels in batches] == [16, 16, 16]
    pixels = torch.cat([x for x, _ in batches]).permute(0, 2, 3, 1).numpy()
    labels = torch.cat([y for _, y in batches]).numpy()
    assert sorted(labels) == sorted(dataset.train.labels)
    pixels = np.round((pixels * 0.25 + 0.3) * 255).astype(np.uint8)
    padded = np.pad(dataset.train.images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    possible = {
        crop[:, ::flip].tobytes()
        for image in padded
        for row in range(3)
        for column in range(3)
        for crop in [image[row : row + 8, column : column + 8]]
        for flip in (1, -1)
    }
    assert all(np.ascontiguousarray(one).tobytes() in possible for one in pixels)
    # The order of an epoch is reproducible and differs from that of another epoch.
    again = torch.cat([y for _, y in images.train_batches(0)]).numpy()
    other = torch.cat([y for _, y in images.train_batches(1)]).numpy()
    assert (again == labels).all() and (other != labels).any()
    (test,) = images.test_batches()
    assert test[0].shape == (20, 3, 8, 8)


def test_it_learns_and_resumes_where_it_stopped(dataset, tmp_path):
    options = {
        "epochs": 4,
        "batch_size": 16,
        "learning_rate": 0.1,
        "milestones": (2,),
        "milestone_factor": 0.2,
        "dtype": "float32",
        "model_options": ("stage_sizes=1x1", "width=4"),
    }
    path = tmp_path / "latest.pt"
    rows, mode = training.train(dataset, options, (None,), path, lambda: False)
    assert mode == "eager"
    rates = [row["learning_rate"] for row in rows]
    assert rates == pytest.approx([0.1, 0.1, 0.02, 0.02])
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert rows[-1]["test_top1"] > 0.5

    asked = iter([False, False, True])
    other = tmp_path / "folder" / "latest.pt"
    with pytest.raises(Stopped) as stopped:
        training.train(dataset, options, (None,), other, lambda: next(asked))
    assert stopped.value.result == {"epochs": 2, "of": 4}
    resumed, _ = training.train(dataset, options, (None,), other, lambda: False)

    # PyTorch's sums differ in their last digits from run to run.
    for one, other in zip(resumed, rows, strict=True):
        assert one["epoch"] == other["epoch"]
        assert one["learning_rate"] == other["learning_rate"]
        assert one["train_loss"] == pytest.approx(other["train_loss"], abs=0.05)


def test_steps_are_timed_beside_ours_and_failures_reported():
    workload = Workload("resnet20", tuple(OPTIONS.items()), 4, "bfloat16")
    found = step_time.measure(workload, 8, 2, ("no such mode", None))
    assert found["steps"].keys() == {"JAX sgd", "JAX insgd-l2", "PyTorch SGD, eager"}
    assert found["steps"]["PyTorch SGD, eager"]["over_pytorch"]["of_medians"] == 1
    assert len(found["errors"]) == 1
    assert "no such mode" in found["errors"][0]
