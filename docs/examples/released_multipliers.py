"""Prints the table of docs/released_code.md: both rules on one ResNet-20.

    python docs/examples/released_multipliers.py PATH_TO_IMAGES [STEPS]

PATH_TO_IMAGES holds `train/<class>/*` images of 32x32. Multipliers of the paper's rule
and of the released code are taken from the same batch of 128 at the same weights: at
initialization, and after STEPS (200) steps of SGD with momentum, which favors
neither.
"""

import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))  # The application's folder.

import models
from insgd_optax import (
    capture_input_norms,
    capture_released_norms,
    insgd_as_released,
    learning_rate_multipliers,
    scale_by_input_power,
)

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
BATCH, EVERY, SEED = 128, 5, 0
KAPPA = 3.162269  # of the released code, at momentum 0.9
MODEL = models.create("resnet20")


def read(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Every fifth training image, normalized with the paper's constants; its class."""
    files = sorted((folder / "train").glob("*/*"))[::EVERY]
    if len(files) < BATCH:
        sys.exit(f"{folder}/train/<class>/ needs {EVERY * BATCH} images")
    pixels = np.stack([np.asarray(Image.open(file)) for file in files]) / 255.0
    _, labels = np.unique([file.parent.name for file in files], return_inverse=True)
    return ((pixels - MEAN) / STD).astype(np.float32), labels


def train(variables, images, labels, steps):
    """A little SGD; returns the variables and the loss of the last ten steps."""
    tx = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, 0.9))

    @jax.jit
    def step(variables, opt_state, x, y):
        def loss_fn(params):
            variables_in = {**variables, "params": params}
            logits, new = MODEL.apply(variables_in, x, True, mutable=["batch_stats"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            return losses.mean(), new

        params = variables["params"]
        (loss, new), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return {"params": params, **new}, opt_state, loss

    opt_state, losses = tx.init(variables["params"]), []
    rng = np.random.default_rng(SEED)
    for _ in range(steps):
        batch = rng.choice(len(images), BATCH, replace=False)
        variables, opt_state, loss = step(
            variables, opt_state, images[batch], labels[batch]
        )
        losses.append(float(loss))
    return variables, np.mean(losses[-10:])


def sown(variables, images, capture):
    """Returns what the layers sow in one training pass."""
    with capture:
        _, new = MODEL.apply(
            variables, images, True, mutable=["batch_stats", "intermediates"]
        )
    return new["intermediates"]


def paper(variables, images, p):
    """The multiplier of every kernel, from the power of this batch alone."""
    params, tx = variables["params"], scale_by_input_power(decay=0.0)
    norms = sown(variables, images, capture_input_norms(p))
    _, state = tx.update(params, tx.init(params), input_norms=norms)
    return learning_rate_multipliers(state)


def released(variables, images, p):
    """The factors of every kernel: kappa / max(log P, 0.01), one per input channel."""
    params, tx = variables["params"], insgd_as_released(1.0, momentum=0.9)
    norms = sown(variables, images, capture_released_norms(p))
    ones = jax.tree.map(jnp.ones_like, params)
    steps, _ = tx.update(ones, tx.init(params), input_norms=norms)
    flat = traverse_util.flatten_dict(steps, sep="/")
    return {path: -np.asarray(step) for path, step in flat.items()}


def constants(variables, images):
    """The factor of each kernel if no std is floored: for p = 2, from shapes alone."""
    found = {}

    def listen(next_fun, args, kwargs, context):
        path = "/".join((*context.module.path, "kernel"))
        if isinstance(context.module, nn.Conv):
            _, height, width, _ = args[0].shape
            found[path] = KAPPA / np.log(height * width - 1)
        elif isinstance(context.module, nn.Dense):
            found[path] = KAPPA / np.log(args[0].shape[-1] - 0.9)
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(listen):
        jax.eval_shape(lambda v: MODEL.apply(v, images, False), variables)
    return found


def span(factors):
    """Mean over the input channels, and the extremes."""
    return f"{factors.mean():.3f} ({factors.min():.3f} to {factors.max():.3f})"


def main() -> None:
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    images, labels = read(Path(sys.argv[1]))
    steps = int(sys.argv[2]) if len(sys.argv) == 3 else 200
    batch = images[np.random.default_rng(SEED + 1).permutation(len(images))[:BATCH]]
    first = jax.jit(lambda x: MODEL.init(jax.random.key(SEED), x, False))(batch[:1])
    last, loss = train(first, images, labels, steps)
    print(f"{len(images)} images; loss after {steps} steps: {loss:.3f}")
    expected = constants(first, batch)
    for p in (2, 1):
        rows = [f(v, batch, p) for v in (first, last) for f in (paper, released)]
        print(f"\n| l{p} | paper, first | last | released, first | last | constant |")
        print("| --- | --- | --- | --- | --- | --- |")
        for path, constant in expected.items():
            before, released_before, after, released_after = (row[path] for row in rows)
            print(
                f"| {path.removesuffix('/kernel')} | {before:.3f} | {after:.3f} |"
                f" {span(released_before)} | {span(released_after)} |"
                f" {format(constant, '.3f') if p == 2 else ''} |"
            )


if __name__ == "__main__":
    main()
