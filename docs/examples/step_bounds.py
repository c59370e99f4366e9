"""Other bounds on the step, tried beside `clip_by_polyak` and not kept.

python docs/examples/step_bounds.py
python docs/examples/step_bounds.py robustness --optimizers change-0.03@1

The script passes its arguments on to `python -m train`, whose commands then accept the
bounds as optimizers BOUND-SIZE (without --processes, and at a constant learning rate).
Without arguments, it compares all of them at the learning rate 100.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

sys.path.insert(0, str(Path(__file__).parents[2]))  # The application's folder.

import insgd_optax
from train import cli
from train.training import optimizers

MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
SIZES = {"layers": (0.3, 1.0, 3.0), "change": (0.01, 0.03, 0.1), "clip": (0.01, 0.1)}


def polyak_by_layer(schedule, size):
    """Polyak's bound for each layer, applied to an equal share of the loss."""

    rate = schedule(0)  # Constant here.

    def scales(grads, updates, params, value):
        del params
        allowed = size * (1 - MOMENTUM) * value / len(grads)
        return {
            layer: jnp.minimum(
                1, allowed / (rate * optax.tree.vdot(grads[layer], updates[layer]))
            )
            for layer in grads
        }

    return bounded(schedule, scales)


def relative_change(schedule, size):
    """||dW x|| / ||W x|| at most `size` in every layer, summed over the momentum.

    For isotropic inputs, both norms are proportional to the captured sqrt(P) times a
    Frobenius norm: the power cancels, which leaves LARS's ratio as a bound.
    """

    rate = schedule(0)

    def scales(grads, updates, params, value):
        del grads, value
        return {
            layer: jnp.minimum(
                1,
                size
                * (1 - MOMENTUM)
                * optax.tree.norm(params[layer])
                / (rate * optax.tree.norm(updates[layer])),
            )
            for layer in params
        }

    return bounded(schedule, scales)


def clipped(schedule, size):
    """The norm of the whole update, after the division by f(P), at most `size`."""

    def scales(grads, updates, params, value):
        del params, value
        norm = optax.tree.norm(updates)
        return dict.fromkeys(grads, jnp.minimum(1, size / norm))

    return bounded(schedule, scales)


def bounded(schedule, scales):
    """INSGD, scope layer and log1p, with every layer's update multiplied by a scale."""
    scaling = insgd_optax.scale_by_input_power(normalizer="log1p", scope="layer")

    def update(grads, state, params=None, *, input_norms, value, **extra_args):
        del extra_args
        scaled, state = scaling.update(grads, state, params, input_norms=input_norms)
        decayed = jax.tree.map(lambda u, w: u + WEIGHT_DECAY * w, scaled, params)
        by_layer = scales(grads, scaled, params, value)
        return {
            layer: optax.tree.scale(by_layer[layer], update)
            for layer, update in decayed.items()
        }, state

    return optax.chain(
        optax.GradientTransformationExtraArgs(scaling.init, update),
        optax.trace(MOMENTUM),
        optax.scale_by_learning_rate(schedule),
    )


def main() -> int:
    rules = {"layers": polyak_by_layer, "change": relative_change, "clip": clipped}
    names = []
    for bound, sizes in SIZES.items():
        for size in sizes:
            name = f"{bound}-{size:g}"

            def make(schedule, *_, rule=rules[bound], size=size):
                return optimizers.Optimizer(
                    rule(schedule, size),
                    capture=lambda _: insgd_optax.capture_input_norms(norm_layers=True),
                )

            optimizers.register(name, make, learning_rate=100.0)
            names.append(name)
    return cli.main(sys.argv[1:] or ["compare", "--optimizers", *names])


if __name__ == "__main__":
    sys.exit(main())
