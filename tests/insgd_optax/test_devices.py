"""Several devices: a mesh under jit, pmap and shard_map give the one-device step."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from insgd_optax import capture_input_norms, input_powers, insgd

STEPS = 5


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), param_dtype=x.dtype)(x))
        return nn.Dense(3, param_dtype=x.dtype)(x.reshape(x.shape[0], -1))


TX = insgd(0.1, weight_decay=1e-3)


def step(params, state, x, axis_name=None):
    def loss_fn(params):
        with capture_input_norms():
            y, sown = Net().apply({"params": params}, x, mutable=["intermediates"])
        return jnp.mean(jnp.sum(jnp.sin(y), axis=1)), sown["intermediates"]

    grads, norms = jax.grad(loss_fn, has_aux=True)(params)
    if axis_name is not None:
        # One collective: a norm is a mean over samples, as a gradient is.
        grads, norms = jax.lax.pmean((grads, norms), axis_name)
    updates, state = TX.update(grads, state, params, input_norms=norms)
    return optax.apply_updates(params, updates), state


def on_one_device(params, state, x):
    for _ in range(STEPS):
        params, state = jax.jit(step)(params, state, x)
    return params, state


def on_a_mesh(params, state, x):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    replicated = NamedSharding(mesh, PartitionSpec())
    params, state = jax.device_put((params, state), replicated)
    for _ in range(STEPS):
        params, state = jax.jit(step)(params, state, x)
    return params, state


def by_pmap(params, state, x):
    x = x.reshape(8, -1, *x.shape[1:])
    params, state = jax.tree.map(lambda a: jnp.stack([a] * 8), (params, state))
    parallel = jax.pmap(lambda *args: step(*args, axis_name="batch"), axis_name="batch")
    for _ in range(STEPS):
        params, state = parallel(params, state, x)
    return jax.tree.map(lambda a: a[0], (params, state))


def by_shard_map(params, state, x):
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
    parallel = jax.jit(
        jax.shard_map(
            lambda *args: step(*args, axis_name="batch"),
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec("batch")),
            out_specs=PartitionSpec(),
            # With its check the gradients would come out summed over the devices.
            check_vma=False,
        )
    )
    for _ in range(STEPS):
        params, state = parallel(params, state, x)
    return params, state


@pytest.mark.parametrize("parallel", [on_a_mesh, by_pmap, by_shard_map])
def test_eight_devices_are_one(parallel, x64):
    x = 3 * jax.random.normal(jax.random.key(0), (16, 6, 6, 2), jnp.float64)
    params = Net().init(jax.random.key(1), x)["params"]
    expected, expected_state = on_one_device(params, TX.init(params), x)
    actual, state = parallel(params, TX.init(params), x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-10), actual, expected)
    powers, expected_powers = input_powers(state), input_powers(expected_state)
    for name, power in powers.items():
        np.testing.assert_allclose(power, expected_powers[name], rtol=1e-12)
