"""INSGD's normalizers, and Polyak's factor, on small networks of many kinds.

python docs/examples/small_networks.py normalizers --json normalizers.json
python docs/examples/small_networks.py factors --json factors.json

The script performs the training runs that are not yet in the JSON file, and prints the
table. It can be stopped at any time and started again. Tasks: scikit-learn's digits,
and the sources of Python's standard library read character by character. Nothing is
downloaded.
"""

import argparse
import functools
import itertools
import json
import math
import statistics
import subprocess
import sysconfig
import time
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from insgd_optax import (
    capture_input_covariances,
    capture_input_norms,
    insgd,
    learning_rate_multipliers,
    lms_newton,
)

SEEDS = (0, 1, 2)
FACTORS = (0.1, 0.3, 1.0, 3.0)
UNBOUNDED = math.inf
BOUNDED_RATE = 10.0  # So large that only the factor matters.
CHARACTERS, LENGTH, BATCH = 128, 32, 16  # Of the text, which is ASCII.
# Where the search for the best learning rate starts; it goes on in half decades.
START_RATES = {"sgd": 0.1, "insgd": 0.1, "insgd+log1p": 0.3, "lms-newton": 0.1}


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = x.reshape(len(x), -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(128)(x))
        return nn.Dense(10)(x)


class Cnn(nn.Module):
    """The network of Flax's MNIST example."""

    @nn.compact
    def __call__(self, x, train):
        for width in (32, 64):
            x = nn.relu(nn.Conv(width, (3, 3))(x))
            x = nn.avg_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Dense(256)(x.reshape(len(x), -1)))
        return nn.Dense(10)(x)


class ResNet(nn.Module):
    """One residual block."""

    batch_norm: bool

    @nn.compact
    def __call__(self, x, train):
        def norm(x):
            if not self.batch_norm:
                return x
            return nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)

        def conv(width, kernel, stride=1):
            use_bias = not self.batch_norm
            return nn.Conv(width, (kernel, kernel), stride, use_bias=use_bias)

        x = nn.relu(norm(conv(8, 3)(x)))
        y = norm(conv(16, 3)(nn.relu(norm(conv(16, 3, stride=2)(x)))))
        x = nn.relu(norm(conv(16, 1, stride=2)(x)) + y)
        return nn.Dense(10)(x.mean((1, 2)))


class RowGru(nn.Module):
    """Reads an image row by row."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.RNN(nn.GRUCell(64))(x[..., 0])
        return nn.Dense(10)(x[:, -1])


class Block(nn.Module):
    """A transformer's block, normalized before each part."""

    @nn.compact
    def __call__(self, x, mask=None):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=4)(y, mask=mask)
        width = x.shape[-1]
        y = nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x)))
        return x + nn.Dense(width)(y)


class VisionTransformer(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(32, (2, 2), strides=2)(x).reshape(len(x), -1, 32)
        x = x + self.param("positions", nn.initializers.normal(0.02), x[:1].shape)
        for _ in range(2):
            x = Block()(x)
        return nn.Dense(10)(nn.LayerNorm()(x).mean(1))


class TextGru(nn.Module):
    """Characters are one-hot encoded, as in Flax's seq2seq example."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.RNN(nn.GRUCell(64))(jax.nn.one_hot(x, CHARACTERS))
        return nn.Dense(CHARACTERS)(x)


class TextTransformer(nn.Module):
    """The network of examples/char_transformer.py, smaller."""

    @nn.compact
    def __call__(self, x, train):
        mask = nn.make_causal_mask(x)
        x = nn.Embed(CHARACTERS, 64)(x)
        x = x + self.param("positions", nn.initializers.normal(0.02), x[:1].shape)
        x = Block()(x, mask)
        return nn.Dense(CHARACTERS)(nn.LayerNorm()(x))


class Data(NamedTuple):
    """Batches by the indices of their samples."""

    num_train: int
    train: object  # From indices to inputs and targets.
    test: tuple  # Inputs and targets.


@functools.cache
def digits():
    """1437 images for training, 360 for testing."""
    images, labels = load_digits(return_X_y=True)
    x = (images / 16).reshape(-1, 8, 8, 1).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = jnp.asarray(x[order]), jnp.asarray(labels[order])
    return Data(1437, lambda index: (x[index], y[index]), (x[1437:], y[1437:]))


@functools.cache
def text():
    """The standard library's sources; every tenth file is for testing."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    files = [path.read_bytes().decode().encode("ascii", "ignore") for path in paths]
    parts = files[::10], [file for i, file in enumerate(files) if i % 10]
    test, train = (np.frombuffer(b"".join(part), np.uint8) for part in parts)
    train = jnp.asarray(train)

    def windows(text, starts):
        sequences = text[starts[:, None] + np.arange(LENGTH + 1)].astype(jnp.int32)
        return sequences[:, :-1], sequences[:, 1:]

    starts = np.linspace(0, len(test) - LENGTH - 1, 256).astype(int)
    return Data(
        len(train) - LENGTH,
        lambda index: windows(train, index),
        windows(jnp.asarray(test), starts),
    )


class Task(NamedTuple):
    model: nn.Module
    data: object
    batch: int
    steps: int
    metric: str


def on_digits(model, epochs=10):
    return Task(model, digits, 64, epochs * (1437 // 64), "accuracy")


def on_text(model, steps=200):
    return Task(model, text, BATCH, steps, "loss")


TASKS = {
    "mlp": on_digits(Mlp()),
    "cnn": on_digits(Cnn()),
    "resnet": on_digits(ResNet(batch_norm=False)),
    "resnet_bn": on_digits(ResNet(batch_norm=True)),
    "gru": on_digits(RowGru()),
    "vit": on_digits(VisionTransformer()),
    "text_gru": on_text(TextGru()),
    "text_transformer": on_text(TextTransformer()),
}


# INSGD with the divisor 1 is SGD. One compiled program chooses among them.
DIVISORS = {
    "sgd": jnp.ones_like,
    "insgd": lambda power: jnp.maximum(jnp.log(power), 0.01),
    "insgd+log1p": lambda power: 1 + jnp.log1p(power),
}


class Hyperparameters(NamedTuple):
    """Numbers, which a compiled program takes as arguments."""

    divisor: int
    rate: float
    factor: float
    gain: float
    annealed: bool


def make_optimizer(rule, steps, hyperparameters):
    """An optimizer with momentum 0.9 from traced hyperparameters."""
    divisor, rate, factor, gain, annealed = hyperparameters

    def schedule(count):
        cosine = (1 + jnp.cos(jnp.pi * count / steps)) / 2
        return rate * jnp.where(annealed, cosine, 1.0)

    def normalizer(power):
        return jax.lax.switch(divisor, tuple(DIVISORS.values()), power)

    if rule == "lms-newton":
        return lms_newton(schedule, polyak_factor=factor)
    make = functools.partial(insgd, schedule, normalizer=normalizer)
    return aligned(make, factor, gain)


def aligned(make, factor, gain):
    """If `gain` is not 0, the factor grows while gradients agree with the last step."""

    def init(params):
        last = jax.tree.map(jnp.zeros_like, params)
        return (
            jnp.asarray(factor, jnp.float32),
            last,
            make(polyak_factor=1.0).init(params),
        )

    def update(grads, state, params=None, **extra_args):
        factor, last, inner = state
        size = optax.tree.norm(grads) * optax.tree.norm(last)
        cosine = -optax.tree.vdot(grads, last) / jnp.maximum(size, 1e-30)
        grown = jnp.clip(factor * jnp.exp(gain * cosine), FACTORS[0], FACTORS[-1])
        factor = jnp.where(gain > 0, grown, factor)
        tx = make(polyak_factor=factor)
        updates, inner = tx.update(grads, inner, params, **extra_args)
        return updates, (factor, updates, inner)

    return optax.GradientTransformationExtraArgs(init, update)


@functools.cache
def program(task, rule):
    """A run, whose step is compiled once for all hyperparameters."""
    model, make_data, batch, steps, _ = TASKS[task]
    data = make_data()

    @jax.jit
    def init(rng, hyperparameters):
        variables = model.init(rng, data.test[0][:2], train=False)
        params, stats = variables["params"], variables.get("batch_stats", {})
        tx = make_optimizer(rule, steps, hyperparameters)
        return params, stats, tx.init(params), 0

    @functools.partial(jax.jit, donate_argnums=0)
    def step(carry, indices, hyperparameters):
        params, stats, state, count = carry
        x, y = data.train(indices)

        def loss_fn(params):
            norms = capture_input_norms(p=2)
            covariances = capture_input_covariances(when=count % 10 == 0)
            with covariances if rule == "lms-newton" else norms:
                logits, sown = model.apply(
                    {"params": params, "batch_stats": stats},
                    x,
                    train=True,
                    mutable=["batch_stats", "intermediates"],
                )
            return cross_entropy(logits, y), sown

        (loss, sown), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        tx = make_optimizer(rule, steps, hyperparameters)
        updates, state = tx.update(
            grads, state, params, value=loss, input_norms=sown, input_covariances=sown
        )
        params = optax.apply_updates(params, updates)
        return (params, sown.get("batch_stats", {}), state, count + 1), loss

    @jax.jit
    def evaluate(params, stats):
        x, y = data.test
        logits = model.apply({"params": params, "batch_stats": stats}, x, train=False)
        accuracy = 100 * (logits.argmax(-1) == y).mean()
        return {"loss": cross_entropy(logits, y), "accuracy": accuracy}

    def run(seed, hyperparameters):
        rng = np.random.default_rng(seed)
        if task.startswith("text"):
            indices = rng.integers(data.num_train, size=(steps, batch))
        else:  # Epochs without their incomplete last batch.
            full = data.num_train // batch
            orders = [rng.permutation(data.num_train) for _ in range(steps // full)]
            indices = np.stack(orders)[:, : full * batch].reshape(steps, batch)
        carry, losses = init(jax.random.key(seed), hyperparameters), []
        for number, index in enumerate(indices):
            carry, loss = step(carry, index, hyperparameters)
            losses.append(loss)
            if number == 0:
                first = jax.device_get(multipliers(carry[2]))
        losses = np.array(jax.device_get(losses))
        params, stats, state, _ = carry
        return jax.device_get(evaluate(params, stats)) | {
            "train_loss": losses[-steps // 10 :].mean(),
            "first_multipliers": first,
            "last_multipliers": jax.device_get(multipliers(state)),
        }

    return run


def cross_entropy(logits, y):
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def multipliers(state):
    try:
        return learning_rate_multipliers(state)
    except ValueError:  # Not INSGD.
        return {}


class Results:
    """Runs by their settings, in a file that is rewritten after each run."""

    def __init__(self, path):
        self.path = path
        self.runs = json.loads(path.read_text())["runs"] if path.exists() else {}

    def run(self, task, optimizer, rate, factor, schedule, seed):
        key = f"{task} {optimizer} {rate:g} {factor:g} {schedule} {seed}"
        if key not in self.runs:
            name = optimizer.removesuffix("+aligned")
            hyperparameters = Hyperparameters(
                divisor=list(DIVISORS).index(name) if name in DIVISORS else 0,
                rate=rate,
                factor=factor,
                gain=0.1 if name != optimizer else 0.0,
                annealed=schedule == "cosine",
            )
            start = time.process_time()
            run = program(task, "insgd" if name in DIVISORS else name)
            found = run(seed, hyperparameters)
            found = jax.tree.map(lambda value: round(float(value), 6), found)
            seconds = round(time.process_time() - start, 1)
            self.runs[key] = found | {"processor_seconds": seconds, "commit": commit()}
            print(key, self.score(task, found), seconds, flush=True)
            self.save()
        return self.runs[key]

    def save(self):
        versions = {module.__name__: module.__version__ for module in (jax, optax)}
        whole = {"device": jax.devices()[0].device_kind} | versions
        text = json.dumps(whole | {"runs": self.runs}, indent=1)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(text)
        temporary.replace(self.path)

    def score(self, task, found):
        """The value by which runs are compared; larger is better."""
        value = found[TASKS[task].metric]
        if not math.isfinite(value):
            return -math.inf
        return value if TASKS[task].metric == "accuracy" else -value

    def scores(self, task, optimizer, rate, factor, schedule, seeds=SEEDS):
        return [
            self.score(task, self.run(task, optimizer, rate, factor, schedule, seed))
            for seed in seeds
        ]

    def best_rate(self, task, optimizer, schedule):
        """Climbs in half decades with the first seed."""

        @functools.cache
        def score(index):
            rate = rate_at(optimizer, index)
            return self.scores(task, optimizer, rate, UNBOUNDED, schedule, SEEDS[:1])[0]

        index = 0
        while (better := max(index, index - 1, index + 1, key=score)) != index:
            index = better
        return rate_at(optimizer, index)


def rate_at(optimizer, index):
    """The rate `index` half decades from the start: 1 or 3 times a power of ten."""
    start = START_RATES[optimizer]
    half_decades = round(2 * math.log10(start)) + index
    return (3 if half_decades % 2 else 1) * 10.0 ** (half_decades // 2)


def neighbor(optimizer, rate, offset):
    """The rate that many half decades away."""
    rates = [rate_at(optimizer, index) for index in range(-20, 20)]
    return rates[rates.index(rate) + offset]


@functools.cache
def commit():
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def cell(scores):
    """Mean and sample standard deviation; losses get their sign back."""
    if not all(map(math.isfinite, scores)):
        return "diverged"
    digits = 1 if scores[0] > 0 else 3
    mean = f"{abs(statistics.mean(scores)):.{digits}f}"
    if len(scores) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(scores):.{digits}f}"


def normalizers(results, tasks, schedules):
    """Prints each optimizer at its best learning rate, and at its two neighbors.

    The neighbors are half a decade away, and are run with the first seed only.
    """
    print("| task | optimizer | rate / 3 | best | rate x 3 | rate | at the floor |")
    for task, schedule, optimizer in itertools.product(tasks, schedules, START_RATES):
        best = results.best_rate(task, optimizer, schedule)
        cells = [
            cell(results.scores(task, optimizer, rate, UNBOUNDED, schedule, seeds))
            for rate, seeds in (
                (neighbor(optimizer, best, -1), SEEDS[:1]),
                (best, SEEDS),
                (neighbor(optimizer, best, 1), SEEDS[:1]),
            )
        ]
        found = results.run(task, optimizer, best, UNBOUNDED, schedule, SEEDS[0])
        # LMS-Newton has no multipliers, and the published runs of SGD leave them out.
        values = found.get("first_multipliers", {}).values()
        at_floor = sum(value > 99 for value in values)
        floor = f"{at_floor} of {len(values)}" if values else "–"
        row = [task, optimizer, *cells, f"{best:g}", floor]
        print(f"| {' | '.join(row)} |", flush=True)


def factors(results, tasks, schedules, optimizers):
    """Prints each optimizer at every factor, or with the factor that adapts.

    SGD is also shown without a bound, at its best learning rate.
    """
    columns = [*(f"{factor:g}" for factor in FACTORS), "none", "rate"]
    print(f"| task | optimizer | schedule | {' | '.join(columns)} |")
    for task, schedule, optimizer in itertools.product(tasks, schedules, optimizers):
        adapts = optimizer.endswith("+aligned")
        cells = [
            cell(results.scores(task, optimizer, BOUNDED_RATE, factor, schedule))
            for factor in ((1.0,) if adapts else FACTORS)
        ]
        if optimizer == "sgd":
            best = results.best_rate(task, optimizer, schedule)
            found = results.scores(task, optimizer, best, UNBOUNDED, schedule)
            cells += [cell(found), f"{best:g}"]
        print(f"| {' | '.join([task, optimizer, schedule, *cells])} |", flush=True)


def main(args):
    results = Results(args.json)
    if args.table == "normalizers":
        normalizers(
            results, args.tasks or ["text_gru", "text_transformer"], ["constant"]
        )
    else:
        factors(results, args.tasks or list(TASKS), args.schedules, args.optimizers)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=("normalizers", "factors"))
    parser.add_argument("--json", type=Path, required=True, help="file of the runs")
    parser.add_argument(
        "--tasks", nargs="+", choices=TASKS, help="default: those of the table"
    )
    parser.add_argument(
        "--schedules",
        nargs="+",
        default=["constant"],
        choices=["constant", "cosine"],
        help="learning rate schedules of the table of factors (default: %(default)s)",
    )
    parser.add_argument(
        "--optimizers",
        nargs="+",
        default=["sgd", "insgd+log1p"],
        help="optimizers of the table of factors; NAME+aligned, except lms-newton, has "
        "a factor that adapts (default: %(default)s)",
    )
    options = parser.parse_args()
    if "lms-newton+aligned" in options.optimizers:
        parser.error("lms-newton has no factor that adapts")
    main(options)
