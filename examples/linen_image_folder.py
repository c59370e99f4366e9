"""A convolutional network in Flax Linen on a folder of images, trained with INSGD.

FOLDER has train/ and test/ with one subfolder per class, as in FOLDER/train/cat/1.png.
Needs Pillow.

    python examples/linen_image_folder.py FOLDER
"""

import argparse
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

import insgd_optax
from insgd_optax import capture_input_norms, insgd, learning_rate_multipliers


class CNN(nn.Module):
    num_classes: int
    features: int = 32

    @nn.compact
    def __call__(self, x, train):
        for stage in range(3):
            x = nn.Conv(self.features * 2**stage, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))


class TrainState(insgd_optax.TrainState):
    """The library's train state, which passes on input norms, with batch statistics."""

    batch_stats: Any


def load_split(folder, size):
    """Images in memory, (n, size, size, 3) uint8, their labels, and the class names."""
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    images, labels = [], []
    for label, name in enumerate(classes):
        for path in sorted((folder / name).iterdir()):
            with Image.open(path) as image:
                images.append(np.asarray(image.convert("RGB").resize((size, size))))
            labels.append(label)
    return np.stack(images), np.array(labels), classes


@jax.jit
def train_step(state, images, labels, mean, std):
    def loss_fn(params):
        with capture_input_norms(p=2):
            logits, variables = state.apply_fn(
                {"params": params, "batch_stats": state.batch_stats},
                (images - mean) / std,
                train=True,
                mutable=["batch_stats", "intermediates"],
            )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), variables

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, variables), grads = grad_fn(state.params)
    state = state.apply_gradients(
        grads=grads,
        input_norms=variables["intermediates"],
        batch_stats=variables["batch_stats"],
    )
    return state, loss


@jax.jit
def count_correct(state, images, labels, mean, std):
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = state.apply_fn(variables, (images - mean) / std, train=False)
    return (logits.argmax(-1) == labels).sum()


def main(args):
    images, labels, classes = load_split(args.folder / "train", args.size)
    test_images, test_labels, test_classes = load_split(args.folder / "test", args.size)
    if classes != test_classes:
        raise SystemExit(f"train has the classes {classes}, test has {test_classes}")
    mean = images.mean((0, 1, 2), keepdims=True, dtype=np.float32)
    std = images.std((0, 1, 2), keepdims=True, dtype=np.float32)
    steps_per_epoch = len(images) // args.batch_size

    model = CNN(len(classes), features=4 if args.tiny else 32)
    variables = model.init(jax.random.key(0), jnp.zeros(images[:1].shape), train=False)
    schedule = optax.cosine_decay_schedule(
        args.learning_rate, args.epochs * steps_per_epoch
    )
    state = TrainState.create(
        apply_fn=model.apply,
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        tx=insgd(schedule, momentum=0.9, weight_decay=5e-4),
    )

    rng = np.random.default_rng(0)
    for epoch in range(args.epochs):
        order = rng.permutation(len(images))
        for i in range(steps_per_epoch):
            batch = order[i * args.batch_size : (i + 1) * args.batch_size]
            state, loss = train_step(state, images[batch], labels[batch], mean, std)
        correct = 0
        for i in range(0, len(test_images), args.batch_size):
            part = slice(i, i + args.batch_size)
            correct += count_correct(
                state, test_images[part], test_labels[part], mean, std
            )
        accuracy = float(correct) / len(test_images)
        print(f"epoch {epoch + 1}: loss {loss:.3f}, test accuracy {accuracy:.1%}")
    for weight, multiplier in learning_rate_multipliers(state.opt_state).items():
        print(f"{weight}: learning rate x {float(multiplier):.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder with train/ and test/")
    parser.add_argument(
        "--epochs", type=int, default=10, help="passes over the training images"
    )
    parser.add_argument("--batch-size", type=int, default=128, help="images per step")
    parser.add_argument(
        "--learning-rate", type=float, default=0.3, help="peak of the schedule"
    )
    parser.add_argument("--size", type=int, default=32, help="side of an image, pixels")
    parser.add_argument("--tiny", action="store_true", help="a small network")
    main(parser.parse_args())
