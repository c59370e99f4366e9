"""Several devices: a mesh under jit, pmap and shard_map give the one-device step."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from insgd_optax import (
    ClipByPolyakState,
    ScaleByInputPowerState,
    capture_input_covariances,
    capture_input_norms,
    input_powers,
    insgd,
    lms_newton,
    whiten_inputs,
)
from insgd_optax._paths import states_of

STEPS = 5


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), param_dtype=x.dtype)(x))
        return nn.Dense(3, param_dtype=x.dtype)(x.reshape(x.shape[0], -1))


OPTIMIZERS = {
    "insgd": insgd(0.1, weight_decay=1e-3),
    # The loss of this net may be negative. At this learning rate, updates are clipped.
    "bounded": insgd(20.0, weight_decay=1e-3, polyak_factor=0.1, loss_lower_bound=-3.0),
    "covariance": lms_newton(0.1, weight_decay=1e-3),
    "whitened": optax.chain(whiten_inputs(optax.trace(0.9)), optax.scale(-0.1)),
}


def step(tx, params, state, x, axis_name=None):
    def loss_fn(params):
        # Under pmap and shard_map, rows would be capped per device: here they are not.
        with capture_input_norms(), capture_input_covariances(max_rows=None):
            y, sown = Net().apply({"params": params}, x, mutable=["intermediates"])
        return jnp.mean(jnp.sum(jnp.sin(y), axis=1)), sown["intermediates"]

    (loss, norms), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    if axis_name is not None:
        # One collective: norm and loss are means over samples, as a gradient is.
        grads, norms, loss = jax.lax.pmean((grads, norms, loss), axis_name)
    updates, state = tx.update(
        grads,
        state,
        params,
        input_norms=norms,
        input_covariances=norms,
        value=loss,
    )
    return optax.apply_updates(params, updates), state


jitted_step = jax.jit(step, static_argnums=0)


def on_one_device(tx, params, state, x):
    for _ in range(STEPS):
        params, state = jitted_step(tx, params, state, x)
    return params, state


def on_a_mesh(tx, params, state, x):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    replicated = NamedSharding(mesh, PartitionSpec())
    params, state = jax.device_put((params, state), replicated)
    return on_one_device(tx, params, state, x)


def by_pmap(tx, params, state, x):
    x = x.reshape(8, -1, *x.shape[1:])
    params, state = jax.tree.map(lambda a: jnp.stack([a] * 8), (params, state))
    parallel = jax.pmap(
        lambda *args: step(tx, *args, axis_name="batch"), axis_name="batch"
    )
    for _ in range(STEPS):
        params, state = parallel(params, state, x)
    return jax.tree.map(lambda a: a[0], (params, state))


def by_shard_map(tx, params, state, x):
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
    parallel = jax.jit(
        jax.shard_map(
            lambda *args: step(tx, *args, axis_name="batch"),
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec("batch")),
            out_specs=PartitionSpec(),
            # With the check, gradients would be summed over the devices.
            check_vma=False,
        )
    )
    for _ in range(STEPS):
        params, state = parallel(params, state, x)
    return params, state


@pytest.mark.parametrize("parallel", [on_a_mesh, by_pmap, by_shard_map])
@pytest.mark.parametrize("tx", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_eight_devices_give_the_steps_of_one(parallel, tx, x64):
    x = 3 * jax.random.normal(jax.random.key(0), (16, 6, 6, 2), jnp.float64)
    params = jax.jit(Net().init)(jax.random.key(1), x)["params"]
    expected, expected_state = on_one_device(tx, params, tx.init(params), x)
    actual, state = parallel(tx, params, tx.init(params), x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-10), actual, expected)
    if states_of(state, ScaleByInputPowerState):
        powers, expected_powers = input_powers(state), input_powers(expected_state)
        for name, power in powers.items():
            np.testing.assert_allclose(power, expected_powers[name], rtol=1e-12)
    for bound in states_of(state, ClipByPolyakState):
        assert 0 < bound.scale < 1
