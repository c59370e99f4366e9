"""LMS-Newton on several devices, with the batch and the kernels sharded.

Under `jax.jit`, the training step has the same code as on one device. On a CPU, eight
devices are simulated.

    python examples/sharded_mesh.py
"""

import argparse

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from insgd_optax import capture_input_covariances, lms_newton

if jax.config.jax_num_cpu_devices < 2:
    jax.config.update("jax_num_cpu_devices", 8)  # Before the first use of a device.


class MLP(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        # Megatron's pair: columns of the first kernel, rows of the second.
        columns = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
        rows = nn.with_partitioning(nn.initializers.lecun_normal(), ("model", None))
        x = nn.relu(nn.Dense(self.width, kernel_init=columns)(x))
        return nn.Dense(10, kernel_init=rows)(x)


def main(args):
    devices = jax.device_count()
    model_axis = 2 if devices % 2 == 0 else 1
    mesh = jax.make_mesh(
        (devices // model_axis, model_axis),
        ("data", "model"),
        # With Explicit axes, the second product would need an `out_sharding`, which
        # nn.Dense does not take.
        axis_types=(AxisType.Auto, AxisType.Auto),
    )
    batch_sharding = NamedSharding(mesh, PartitionSpec("data"))

    model = MLP(args.width)
    tx = lms_newton(0.03, momentum=0.9)
    example = jnp.zeros((1, 64))

    def init(rng):
        params = model.init(rng, example)["params"]
        return params, tx.init(params)

    # The optimizer's state follows the parameters' sharding metadata, or is replicated.
    specs = nn.get_partition_spec(jax.eval_shape(init, jax.random.key(0)))
    shardings = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        specs,
        is_leaf=lambda spec: isinstance(spec, PartitionSpec),
    )
    params, opt_state = jax.jit(init, out_shardings=shardings)(jax.random.key(0))

    @jax.jit
    def train_step(params, opt_state, x, labels, step):
        def loss_fn(params):
            with capture_input_covariances(when=step % 10 == 0):
                logits, sown = model.apply(
                    {"params": params}, x, mutable=["intermediates"]
                )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), sown

        (loss, sown), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params, input_covariances=sown)
        return optax.apply_updates(params, updates), opt_state, loss

    rng = np.random.default_rng(0)
    directions = rng.normal(size=(64, 10))
    for step in range(args.steps):
        x = rng.normal(size=(32 * devices, 64)).astype(np.float32)
        labels = (x @ directions).argmax(-1)
        x, labels = jax.device_put((x, labels), batch_sharding)
        params, opt_state, loss = train_step(params, opt_state, x, labels, step)
        if (step + 1) % 50 == 0 or step + 1 == args.steps:
            print(f"step {step + 1}: loss {loss:.3f}")

    kernel = params["Dense_0"]["kernel"].value
    print(f"mesh {dict(mesh.shape)}; kernel {kernel.shape}, {kernel.sharding.spec},")
    print(f"of which each device holds {kernel.addressable_shards[0].data.shape}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=200, help="training steps")
    parser.add_argument(
        "--width", type=int, default=256, help="width of the hidden layer"
    )
    main(parser.parse_args())
