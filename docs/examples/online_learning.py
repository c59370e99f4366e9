"""Draws the picture of docs/online_learning.md and prints its table.

Learning online, a sample at a time, from a stream whose input drifts in scale by a
factor of 100: SGD, INSGD with each normalizer, and NLMS, each at its best rate.

python docs/examples/online_learning.py [FOLDER]
"""

import functools
import pathlib
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # The application's folder.

from insgd_optax import capture_input_norms, insgd, nlms

NUM_INPUTS = 16
NUM_STEPS = 6000
SEEDS = range(5)
SMALLEST, LARGEST = 0.1, 10.0
# The correlation of the teacher's weights with those a thousand steps before.
TEACHER_CORRELATION = 0.9
RATES = 2.0 ** np.arange(-20, 5)

OPTIMIZERS = {
    "SGD": optax.sgd,
    "INSGD, log": functools.partial(insgd, momentum=0.0),
    "INSGD, log1p": functools.partial(insgd, momentum=0.0, normalizer="log1p"),
    "INSGD, power": functools.partial(insgd, momentum=0.0, normalizer="power"),
    "NLMS": nlms,
}


class Network(nn.Module):
    """Layers without biases: the output scales with the input, at any scale."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for width in self.widths:
            x = nn.relu(nn.Dense(width, use_bias=False)(x))
        return nn.Dense(1, use_bias=False)(x)[..., 0]


TASKS = {"linear neuron": Network(()), "network of two layers": Network((32,))}


def scales(num_steps):
    """Rises from small to large and falls again; the logarithm follows a cosine."""
    phase = (1 - np.cos(2 * np.pi * np.arange(num_steps) / num_steps)) / 2
    return SMALLEST * (LARGEST / SMALLEST) ** phase


def teachers(model, seed, num_steps):
    """The parameters of a teacher that wanders, at every step."""
    start_rng, walk_rng = jax.random.split(jax.random.key(seed))
    params = model.init(start_rng, jnp.zeros((1, NUM_INPUTS)))["params"]
    leaves, structure = jax.tree.flatten(params)
    keep = TEACHER_CORRELATION ** (1 / 1000)

    def walk(leaf, rng):
        noise = jax.random.normal(rng, (num_steps, *leaf.shape)) * leaf.std()

        def step(w, n):
            w = keep * w + jnp.sqrt(1 - keep**2) * n
            return w, w

        return jax.lax.scan(step, leaf, noise)[1]

    rngs = jax.random.split(walk_rng, len(leaves))
    return structure.unflatten(list(map(walk, leaves, rngs)))


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def errors(model, make, rates, num_steps, seed):
    """Squared errors before each step over the target's variance: (rates, steps).

    For the linear neuron, whose target has mean 0, 1 is the error of an output that is
    always 0. For the network of two layers, that output has an error above 1.
    """
    data_rng, student_rng = jax.random.split(jax.random.key(1000 + seed))
    x = jax.random.normal(data_rng, (num_steps, 1, NUM_INPUTS))
    teacher = teachers(model, seed, num_steps)
    unit = jax.vmap(lambda params, x: model.apply({"params": params}, x))(teacher, x)
    scale = jnp.asarray(scales(num_steps), jnp.float32)[:, None]
    stream = (scale[..., None] * x, scale * unit, scale[:, 0] * jnp.std(unit))
    start = model.init(student_rng, x[0])["params"]

    def learn(rate):
        tx = optax.with_extra_args_support(make(rate))

        def step(carry, sample):
            params, state = carry
            inputs, target, size = sample

            def loss_fn(params):
                with capture_input_norms(p=2):
                    y, sown = model.apply(
                        {"params": params}, inputs, mutable=["intermediates"]
                    )
                return 0.5 * jnp.sum((target - y) ** 2), sown

            (loss, norms), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
            updates, state = tx.update(grads, state, params, input_norms=norms)
            return (optax.apply_updates(params, updates), state), 2 * loss / size**2

        return jax.lax.scan(step, (start, tx.init(start)), stream)[1]

    return jax.vmap(learn)(rates)


def best(model, make, num_steps=NUM_STEPS, seeds=SEEDS):
    """The rate with the least mean error over the stream, and its errors by seed."""
    found = np.stack(
        [errors(model, make, jnp.asarray(RATES), num_steps, seed) for seed in seeds],
        axis=1,
    )
    # Learning rates that diverged are not candidates.
    means = np.nan_to_num(found.astype(np.float64), nan=1e30, posinf=1e30).mean((1, 2))
    number = int(np.argmin(means))
    return RATES[number], found[number]


def main(folder):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(3, 1, sharex=True, height_ratios=(1, 2, 2))
    panels[0].plot(scales(NUM_STEPS), "k")
    panels[0].set_yscale("log")
    panels[0].set_ylabel("Input scale")
    window = 200
    for axes, (task, model) in zip(panels[1:], TASKS.items(), strict=True):
        for name, make in OPTIMIZERS.items():
            rate, found = best(model, make)
            thirds = [part.mean() for part in np.split(found, 3, axis=1)]
            print(
                f"| {task} | {name} | {rate:.2g} | {found.mean():.3f} ± "
                f"{found.mean(1).std(ddof=1):.3f} | "
                + " | ".join(f"{part:.3f}" for part in thirds)
                + " |"
            )
            smooth = np.convolve(
                np.median(found, axis=0), np.ones(window) / window, "valid"
            )
            steps = np.arange(len(smooth)) + window / 2
            axes.plot(steps, smooth, label=f"{name}, rate {rate:.2g}")
        axes.set_yscale("log")
        axes.set_ylabel("Relative squared error")
        axes.set_title(task, fontsize="medium")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    panels[-1].set_xlabel("Sample")
    for axes in panels:
        axes.grid(alpha=0.3)
    figure.savefig(folder / "online_learning.png", dpi=110)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images"))
