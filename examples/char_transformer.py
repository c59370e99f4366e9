"""A character-level transformer on the sources of Python's standard library.

Trains with AdamW, with AdamW whose updates are multiplied by the inverse covariance of
each layer's input, with LMS-Newton, with Muon, or with Muon on whitened inputs. Nothing
is downloaded.

    python examples/char_transformer.py --optimizer adamw+covariance
"""

import argparse
import json
import sysconfig
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import optax

import insgd_optax
from insgd_optax import lms_newton, scale_by_input_covariance, whiten_inputs

VOCABULARY, LENGTH, BATCH = 128, 128, 16  # The characters are ASCII.
RATES = {"adamw": 0.003, "adamw+covariance": 0.01, "lms_newton": 0.3}
RATES |= {"muon": 0.03, "muon+whitened": 0.03}
PLAIN = "adamw", "muon"  # These need no covariances.


class Transformer(nn.Module):
    depth: int
    width: int

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(VOCABULARY, self.width)(tokens)
        x = x + self.param("positions", nn.initializers.normal(0.02), x[:1].shape)
        mask = nn.make_causal_mask(tokens)
        for _ in range(self.depth):
            y = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(num_heads=4)(y, mask=mask)
            y = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
            x = x + nn.Dense(self.width)(y)
        return nn.Dense(VOCABULARY, name="head")(nn.LayerNorm()(x))


def load_text():
    """Training and test characters: every tenth file of the library is for testing."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    texts = [path.read_bytes().decode().encode("ascii", "ignore") for path in paths]
    test, train = texts[::10], [text for i, text in enumerate(texts) if i % 10]
    return [np.frombuffer(b"".join(part), np.uint8) for part in (train, test)]


def windows(text, starts):
    """Sequences of LENGTH + 1 characters: inputs and, shifted by one, targets."""
    return text[starts[:, None] + np.arange(LENGTH + 1)].astype(np.int32)


def muon_dimensions(params):
    """Input and output axes of the blocks' kernels; None for weights Adam trains."""

    def dimensions(path, weight):
        names = {key.key for key in path}
        if "kernel" not in names or "head" in names:
            return None
        outputs = 2 if {"query", "key", "value"} & names else 1  # (heads, features)
        axes = tuple(range(weight.ndim))
        return optax.contrib.MuonDimensionNumbers(axes[:-outputs], axes[-outputs:])

    return jax.tree_util.tree_map_with_path(dimensions, params)


def make_optimizer(name, learning_rate, steps, **options):
    rate = optax.warmup_cosine_decay_schedule(0.0, learning_rate, steps // 10, steps)
    if name == "lms_newton":
        return lms_newton(rate, weight_decay=1e-4)
    adam = optax.scale_by_adam(b2=0.95)
    muon = optax.contrib.muon(
        -1.0,  # So that its updates have the sign of gradients, as Adam's do.
        adam_b2=0.95,
        adam_learning_rate=-0.3,
        muon_weight_dimension_numbers=muon_dimensions,
    )
    directions = {
        "adamw": adam,
        "adamw+covariance": optax.chain(adam, scale_by_input_covariance(**options)),
        "muon": muon,
        "muon+whitened": whiten_inputs(muon, **options),
    }
    descent = optax.scale_by_learning_rate(rate)
    return optax.chain(directions[name], optax.add_decayed_weights(1e-4), descent)


def make_functions(model, tx, captures, every=10, **options):
    """The loss and the training step; `captures`: whether `tx` needs covariances."""

    def loss_fn(params, batch):
        x, y = batch[:, :-1], batch[:, 1:]
        logits, sown = model.apply({"params": params}, x, mutable=["intermediates"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return losses.mean(), sown

    @jax.jit
    def train_step(params, opt_state, batch, step):
        when = captures and step % every == 0
        with insgd_optax.capture_input_covariances(when=when, **options):
            grads, sown = jax.grad(loss_fn, has_aux=True)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params, input_covariances=sown)
        return optax.apply_updates(params, updates), opt_state

    return loss_fn, train_step


def train(args, of_optimizer, of_capture):
    """Returns the test losses by step, given options of `tx` and of the capture."""
    train_text, test_text = load_text()
    starts = np.linspace(0, len(test_text) - LENGTH - 1, 32 if args.tiny else 256)
    test = windows(test_text, starts.astype(int)).reshape(-1, BATCH, LENGTH + 1)
    model = Transformer(depth=1, width=32) if args.tiny else Transformer(4, 128)
    params = model.init(jax.random.key(args.seed), test[0, :, 1:])["params"]
    tx = make_optimizer(args.optimizer, args.learning_rate, args.steps, **of_optimizer)
    state = params, tx.init(params)
    captures = args.optimizer not in PLAIN
    loss_fn, train_step = make_functions(model, tx, captures, **of_capture)
    evaluate = jax.jit(lambda p: jax.lax.map(lambda b: loss_fn(p, b)[0], test).mean())
    rng, test_losses = np.random.default_rng(args.seed), {}
    for step in range(args.steps):
        batch = windows(train_text, rng.integers(len(train_text) - LENGTH, size=BATCH))
        state = train_step(*state, batch, step)
        if (step + 1) % 50 == 0 or step + 1 == args.steps:
            test_losses[step + 1] = float(evaluate(state[0]))
            print(f"step {step + 1}: test loss {test_losses[step + 1]:.4f}", flush=True)
    return test_losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--optimizer", choices=RATES, default="adamw", help="(default: adamw)")
    add("--learning-rate", type=float, help="peak (default: the optimizer's own)")
    add("--seed", type=int, default=0, help="of weights and batches (default: 0)")
    add("--steps", type=int, default=500, help="training steps (default: 500)")
    add("--tiny", action="store_true", help="a small network")
    add("--json", help="file to write the results to (default: none)")
    args = parser.parse_args()
    args.learning_rate = args.learning_rate or RATES[args.optimizer]
    result = vars(args) | {"test_losses": train(args, {}, {})}
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=2))
