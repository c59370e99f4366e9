"""A step of LMS-Newton, with and without capture, beside one of SGD.

python docs/examples/benchmark_covariance.py [ROUNDS]
"""

import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.insert(0, str(Path(__file__).parents[2]))  # The networks' folder.

import models
from insgd_optax import capture_input_covariances, input_covariance_shapes, lms_newton

NETWORKS = [
    ("custom_cnn", 128, {}),
    ("resnet20", 32, {}),
    ("vit", 32, {"width": 128, "depth": 4}),
]
WARM_UP = 4


class Steps:
    """Steps of one optimizer on one batch; number 0 captures, number 1 does not."""

    def __init__(self, model, x, y, captures):
        rng = jax.random.key(0)
        variables = model.init(rng, x[:1], train=False)
        tx = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(1e-4, 0.9))
        if captures:
            with capture_input_covariances():
                like = input_covariance_shapes(model, rng, x[:1], train=False)
            tx = lms_newton(1e-4, weight_decay=5e-4, input_covariances_like=like)
        tx = optax.with_extra_args_support(tx)

        def step(variables, state, number):
            def loss_fn(params):
                with capture_input_covariances(when=captures and number % 10 == 0):
                    logits, sown = model.apply(
                        {**variables, "params": params},
                        x,
                        train=True,
                        mutable=["batch_stats", "intermediates"],
                        rngs={"dropout": rng},
                    )
                loss = optax.softmax_cross_entropy_with_integer_labels(logits, y)
                return loss.mean(), sown

            params = variables["params"]
            grads, sown = jax.grad(loss_fn, has_aux=True)(params)
            covariances = sown.pop("intermediates", {})
            updates, state = tx.update(
                grads, state, params, input_covariances=covariances
            )
            params = optax.apply_updates(params, updates)
            return {**variables, **sown, "params": params}, state

        self._state = variables, tx.init(variables["params"])
        program = jax.jit(step, donate_argnums=(0, 1))
        self._program = program.lower(*self._state, 0).compile()
        self.memory = self._program.memory_analysis().temp_size_in_bytes

    def seconds(self, number):
        start = time.perf_counter()
        self._state = jax.block_until_ready(self._program(*self._state, number))
        return time.perf_counter() - start


def main(rounds):
    rng = np.random.default_rng(0)
    for name, batch, options in NETWORKS:
        x = jnp.asarray(rng.normal(size=(batch, 32, 32, 3)), jnp.float32)
        y = jnp.asarray(rng.integers(0, 10, batch))
        model = models.create(name, **options)
        sgd, newton = (Steps(model, x, y, captures) for captures in (False, True))
        times = {"sgd": [], "capture": [], "no capture": []}
        for _ in range(rounds):
            times["sgd"] += [sgd.seconds(1) for _ in range(3)]
            times["capture"].append(newton.seconds(0))
            # The first step after a capture finds other contents in the caches.
            times["no capture"] += [newton.seconds(1) for _ in range(3)][1:]
        median = {kind: np.median(each[WARM_UP:]) for kind, each in times.items()}
        plain, full = (median[k] / median["sgd"] for k in ("no capture", "capture"))
        print(
            f"{name}, batch {batch}: SGD {1e3 * median['sgd']:.1f} ms;"
            f" without capture {plain:.3f}, with {full:.3f},"
            f" mean every 10 steps {(9 * plain + full) / 10:.3f},"
            f" every 20 {(19 * plain + full) / 20:.3f};"
            f" temporary memory {newton.memory / sgd.memory:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 14)
