"""A convolutional network in Flax NNX on handwritten digits, with LMS-Newton.

The digits are scikit-learn's; nothing is downloaded.

    python examples/nnx_digits.py
"""

import argparse

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from insgd_optax import covariance_condition_numbers, lms_newton
from insgd_optax.nnx import capture_input_covariances


class CNN(nnx.Module):
    def __init__(self, features, rngs):
        self.conv1 = nnx.Conv(1, features, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(features, 2 * features, (3, 3), rngs=rngs)
        self.norm1 = nnx.BatchNorm(features, momentum=0.9, rngs=rngs)
        self.norm2 = nnx.BatchNorm(2 * features, momentum=0.9, rngs=rngs)
        self.linear = nnx.Linear(2 * features, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm1(self.conv1(x)))
        x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        x = nnx.relu(self.norm2(self.conv2(x)))
        return self.linear(x.mean(axis=(1, 2)))


@nnx.jit
def train_step(model, optimizer, images, labels, step):
    def loss_fn(model):
        # Measuring the covariances in every tenth step is enough.
        with capture_input_covariances(when=step % 10 == 0):
            logits, sown = nnx.capture(model, nnx.Intermediate)(images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), sown

    (loss, sown), grads = nnx.value_and_grad(loss_fn, has_aux=True)(model)
    optimizer.update(model, grads, input_covariances=sown)
    return loss


@nnx.jit
def accuracy(model, images, labels):
    return jnp.mean(model(images).argmax(-1) == labels)


def main(args):
    digits = load_digits()
    images = (digits.images[..., None] / 16).astype(np.float32)
    labels = digits.target
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[360:], order[:360]

    model = CNN(features=4 if args.tiny else 16, rngs=nnx.Rngs(0))
    schedule = optax.cosine_decay_schedule(args.learning_rate, args.steps)
    tx = lms_newton(schedule, momentum=0.9, weight_decay=5e-4)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    rng = np.random.default_rng(1)
    for step in range(args.steps):
        batch = rng.choice(train, size=64, replace=False)
        loss = train_step(model, optimizer, images[batch], labels[batch], step)
        if (step + 1) % 50 == 0 or step + 1 == args.steps:
            print(f"step {step + 1}: loss {loss:.3f}")

    model.eval()
    print(f"test accuracy {accuracy(model, images[test], labels[test]):.1%}")
    for weight, number in covariance_condition_numbers(optimizer.opt_state).items():
        print(f"{weight}: condition number of the damped covariance {number:.0f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=300, help="training steps")
    parser.add_argument(
        "--learning-rate", type=float, default=0.03, help="peak of the schedule"
    )
    parser.add_argument("--tiny", action="store_true", help="a small network")
    main(parser.parse_args())
