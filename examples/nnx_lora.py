"""Fine-tuning with LoRA in Flax NNX: the network is frozen, INSGD trains the adapters.

A network learns scikit-learn's handwritten digits. Then every layer gets a low-rank
adapter, and the adapters alone learn the digits lying on their side.

    python examples/nnx_lora.py
"""

import argparse

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from insgd_optax import input_powers, insgd
from insgd_optax.nnx import capture_input_norms


class MLP(nnx.Module):
    def __init__(self, width, rngs):
        self.hidden = nnx.Linear(64, width, rngs=rngs)
        self.output = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, x):
        return self.output(nnx.relu(self.hidden(x)))

    def add_adapters(self, rank, rngs):
        for name in ("hidden", "output"):
            layer = getattr(self, name)
            inputs, outputs = layer.in_features, layer.out_features
            adapter = nnx.LoRA(inputs, rank, outputs, base_module=layer, rngs=rngs)
            setattr(self, name, adapter)


def make_train_step(trained):
    """A step that trains the parameters of one type; all others stay frozen."""

    @nnx.jit
    def train_step(model, optimizer, x, labels):
        def loss_fn(model):
            with capture_input_norms(p=2, layers=[nnx.LoRA]):
                logits, norms = nnx.capture(model, nnx.Intermediate)(x)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), norms

        grad_fn = nnx.value_and_grad(
            loss_fn, argnums=nnx.DiffState(0, trained), has_aux=True
        )
        (loss, norms), grads = grad_fn(model)
        optimizer.update(model, grads, input_norms=norms)
        return loss

    return train_step


def fit(model, optimizer, trained, x, labels, steps):
    train_step = make_train_step(trained)
    rng = np.random.default_rng(0)
    for _ in range(steps):
        batch = rng.choice(len(x), size=64, replace=False)
        train_step(model, optimizer, x[batch], labels[batch])


def main(args):
    digits = load_digits()
    x, labels = (digits.data / 16).astype(np.float32), digits.target
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[360:], order[:360]

    def accuracy(model, x):
        return float(jnp.mean(model(x[test]).argmax(-1) == labels[test]))

    model = MLP(args.width, nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, insgd(0.3, momentum=0.9), wrt=nnx.Param)
    fit(model, optimizer, nnx.Param, x[train], labels[train], args.steps)
    print(f"digits: test accuracy {accuracy(model, x):.1%}")

    rotated = np.rot90(x.reshape(-1, 8, 8), axes=(1, 2)).reshape(-1, 64)
    print(f"rotated, before fine-tuning: {accuracy(model, rotated):.1%}")
    model.add_adapters(args.rank, nnx.Rngs(1))
    # INSGD scales lora_a, which takes the input; lora_b has the full learning rate.
    tx = insgd(args.lora_rate, momentum=0.9, scope=lambda path: path[-1] == "lora_a")
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.LoRAParam)
    frozen = np.array(model.hidden.base_module.kernel[...])
    fit(model, optimizer, nnx.LoRAParam, rotated[train], labels[train], args.steps)
    print(f"rotated, after fine-tuning: {accuracy(model, rotated):.1%}")
    assert np.array_equal(frozen, model.hidden.base_module.kernel[...])
    for weight, power in input_powers(optimizer.opt_state).items():
        print(f"{weight}: power of the input {float(power.squeeze()):.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--steps", type=int, default=300, help="training steps of each phase"
    )
    parser.add_argument(
        "--width", type=int, default=128, help="width of the hidden layer"
    )
    parser.add_argument(
        "--lora-rate", type=float, default=0.03, help="learning rate of the adapters"
    )
    parser.add_argument("--rank", type=int, default=4, help="rank of the adapters")
    main(parser.parse_args())
