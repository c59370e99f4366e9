"""A plain Optax chain with `optax.partition`: weight decay for the kernels alone.

Kernels take INSGD with weight decay; biases, and the scales of normalization layers,
take SGD without. One schedule drives both groups, and gradients are clipped first.

    python examples/partition_weight_decay.py
"""

import argparse

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from insgd_optax import capture_input_norms, scale_by_input_power


class MLP(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.relu(nn.LayerNorm()(nn.Dense(self.width)(x)))
        return nn.Dense(10)(x)


def groups(params):
    """The group of each parameter."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "decay" if path[-1].key == "kernel" else "no decay", params
    )


def make_optimizer(learning_rate, steps):
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, steps // 10, steps
    )
    kernels = optax.chain(
        scale_by_input_power(decay=0.9),  # INSGD
        optax.add_decayed_weights(5e-4),
        optax.trace(0.9),
        # A larger learning rate, since division by log P, about 3 to 5 here, makes the
        # kernels' steps smaller.
        optax.scale_by_learning_rate(lambda step: 6 * schedule(step)),
    )
    others = optax.sgd(schedule, momentum=0.9)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.partition({"decay": kernels, "no decay": others}, groups),
    )


def main(args):
    digits = load_digits()
    x, labels = (digits.data / 16).astype(np.float32), digits.target
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[360:], order[:360]

    model = MLP(args.width)
    params = model.init(jax.random.key(0), x[:1])["params"]
    tx = make_optimizer(args.learning_rate, args.steps)
    opt_state = tx.init(params)

    @jax.jit
    def train_step(params, opt_state, x, y):
        def loss_fn(params):
            with capture_input_norms(p=2):
                logits, sown = model.apply(
                    {"params": params}, x, mutable=["intermediates"]
                )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            return losses.mean(), sown

        (loss, sown), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        # Chains and partitions hand the norms on to the links that take them.
        updates, opt_state = tx.update(grads, opt_state, params, input_norms=sown)
        return optax.apply_updates(params, updates), opt_state, loss

    @jax.jit
    def accuracy(params):
        logits = model.apply({"params": params}, x[test])
        return jnp.mean(logits.argmax(-1) == labels[test])

    rng = np.random.default_rng(1)
    for step in range(args.steps):
        batch = rng.choice(train, size=64, replace=False)
        params, opt_state, loss = train_step(params, opt_state, x[batch], labels[batch])
        if (step + 1) % 100 == 0 or step + 1 == args.steps:
            print(f"step {step + 1}: loss {loss:.3f}")
    print(f"test accuracy {accuracy(params):.1%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=300, help="training steps")
    parser.add_argument(
        "--learning-rate", type=float, default=0.05, help="peak of the schedule"
    )
    parser.add_argument(
        "--width", type=int, default=128, help="width of the hidden layers"
    )
    main(parser.parse_args())
