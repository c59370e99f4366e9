"""Custom networks, datasets and optimizers, valid and invalid."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import insgd_optax
import train

from .stripes import stripes as load


class Linear(nn.Module):
    """Without `train`, like Flax's first example."""

    width: int = 4

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(self.width)(x.reshape(x.shape[0], -1)))
        return nn.Dense(3)(x)


class Stateful(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        self.variable("memory", "calls", lambda: jnp.zeros(()))
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))


class Wrong(nn.Module):
    """Not a logit for each class."""

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(7)(x.reshape(x.shape[0], -1))


class Untrained(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x.reshape(x.shape[0], -1)[:, :3]


class Counting(nn.Module):
    @nn.compact
    def __call__(self, x):
        self.param("count", lambda key: jnp.zeros((), jnp.int32))
        return Linear()(x)


class Raising(nn.Module):
    def __call__(self, x, train):
        raise LookupError("a bug in the network")


def needs_width(width, num_classes):
    return Linear(width)


def no_module(num_classes):
    return "a network"


def raising(*arguments):
    raise LookupError("a bug of mine")


def stumbling(learning_rate=0.1):
    def update(updates, state, params=None):
        raise LookupError("a bug in the optimizer")

    return optax.GradientTransformation(lambda params: (), update)


def reshaping(learning_rate=0.1):
    def update(updates, state, params=None):
        return jax.tree.map(lambda x: x[None], updates), state

    return optax.GradientTransformation(lambda params: (), update)


def one_class():
    return dataclasses.replace(load(), class_names=("a",))


def same_names():
    return dataclasses.replace(load(), class_names=("a", "a"))


def two_classes():
    return dataclasses.replace(load(), class_names=("a", "b"))


def float_images():
    images, labels = load().train
    return dataclasses.replace(load(), train=train.Split(images / 255, labels))


def float_labels():
    images, labels = load().test
    return dataclasses.replace(load(), test=train.Split(images, labels / 1))


def listed_labels():
    images, labels = load().test
    return dataclasses.replace(load(), test=train.Split(images, list(labels)))


def other_shapes():
    images, labels = load().test
    return dataclasses.replace(load(), test=train.Split(images[:, 1:], labels))


def padded():
    augmentation = train.Augmentation(padding=-1)
    preprocessing = train.Preprocessing((0.3,), (0.25,), augmentation)
    return dataclasses.replace(load(), preprocessing=preprocessing)


def no_std():
    return dataclasses.replace(load(), preprocessing=train.Preprocessing((0.3,), ()))


def two_labels():
    def halved(split):
        return train.Split(split.images, split.labels % 2)

    return dataclasses.replace(
        load(),
        train=halved(load().train),
        test=halved(load().test),
        class_names=("a", "b"),
    )


def renamed():
    return dataclasses.replace(load(), class_names=("a", "c", "b"))


def larger_images():
    def grown(split):
        return train.Split(split.images.repeat(2, 1), split.labels)

    return dataclasses.replace(
        load(), train=grown(load().train), test=grown(load().test)
    )


def otherwise_normalized():
    """The same test images in reverse order, under another name."""
    images, labels = load().test
    return dataclasses.replace(
        load(),
        name="reversed",
        test=train.Split(images[::-1], labels[::-1]),
        preprocessing=train.Preprocessing((0.9,), (3.0,)),
    )


def make(learning_rate, momentum, eps=1e-8):
    assert eps == 1e-8  # INSGD's eps is not passed to it.
    return optax.sgd(learning_rate, momentum)


def noisy(learning_rate=0.1):
    return optax.noisy_sgd(learning_rate, key=jax.random.key(0))


def insgd_l1(learning_rate=0.05):
    return train.Optimizer(
        tx=insgd_optax.insgd(learning_rate),
        capture=lambda step: insgd_optax.capture_input_norms(p=1),
    )


def newton(learning_rate=0.05):
    return train.Optimizer(
        tx=insgd_optax.lms_newton(learning_rate),
        capture=lambda step: insgd_optax.capture_input_covariances(when=step % 3 == 2),
        capture_every=3,
    )


def failing_capture(learning_rate=0.05):
    def capture(step):
        raise RuntimeError("of my own")

    return train.Optimizer(tx=insgd_optax.insgd(learning_rate), capture=capture)


def no_rate():
    return optax.sgd(0.1)


CONSTANT = 3


def options(num_classes, **options):
    return Linear()
