"""INSGD with gradient accumulation, float16 activations and dynamic loss scaling.

Four micro-batches make one update: the optimizer averages their gradients and their
input norms. Gradients that overflow lower the loss scale and are skipped.

    python examples/accumulation_mixed_precision.py
"""

import argparse

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.dynamic_scale import DynamicScale
from sklearn.datasets import load_digits

from insgd_optax import MultiSteps, capture_input_norms, insgd


class CNN(nn.Module):
    features: int
    dtype: jnp.dtype = jnp.float16  # Of the computation; the parameters are float32.

    @nn.compact
    def __call__(self, x):
        for stage in range(2):
            features = self.features * 2**stage
            x = nn.relu(nn.Conv(features, (3, 3), dtype=self.dtype)(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape(len(x), -1)
        return nn.Dense(10, dtype=self.dtype)(x).astype(jnp.float32)


def main(args):
    digits = load_digits()
    images = (digits.images[..., None] / 16).astype(np.float32)
    labels = digits.target
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[360:], order[:360]

    model = CNN(features=4 if args.tiny else 16)
    params = model.init(jax.random.key(0), images[:1])["params"]
    # MultiSteps goes outermost. Instead of Optax's, which drops the norms of all
    # micro-batches but the last, take the library's, which averages them.
    tx = MultiSteps(
        insgd(0.3, momentum=0.9, weight_decay=5e-4),
        every_k_schedule=args.accumulate,
        should_skip_update_fn=optax.skip_not_finite,
    )
    opt_state = tx.init(params)
    dynamic_scale = DynamicScale(growth_interval=200)

    @jax.jit
    def train_step(params, opt_state, dynamic_scale, x, y):
        def loss_fn(params):
            with capture_input_norms(p=2):
                logits, sown = model.apply(
                    {"params": params}, x, mutable=["intermediates"]
                )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            return losses.mean(), sown

        # The norms come from the forward pass, so the loss scale does not affect them.
        grad_fn = dynamic_scale.value_and_grad(loss_fn, has_aux=True)
        dynamic_scale, _, (loss, sown), grads = grad_fn(params)
        updates, opt_state = tx.update(grads, opt_state, params, input_norms=sown)
        return optax.apply_updates(params, updates), opt_state, dynamic_scale, loss

    @jax.jit
    def accuracy(params):
        logits = model.apply({"params": params}, images[test])
        return jnp.mean(logits.argmax(-1) == labels[test])

    rng = np.random.default_rng(1)
    for step in range(args.steps):
        batch = rng.choice(train, size=32, replace=False)
        params, opt_state, dynamic_scale, loss = train_step(
            params, opt_state, dynamic_scale, images[batch], labels[batch]
        )
        if (step + 1) % 200 == 0 or step + 1 == args.steps:
            print(
                f"micro-batch {step + 1}: loss {loss:.3f}, updates"
                f" {opt_state.gradient_step}, loss scale {dynamic_scale.scale:g}"
            )
    print(f"test accuracy {accuracy(params):.1%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=1200, help="micro-batches")
    parser.add_argument(
        "--accumulate", type=int, default=4, help="micro-batches per update"
    )
    parser.add_argument("--tiny", action="store_true", help="a small network")
    main(parser.parse_args())
