"""How a program is spread over devices: one table, one interface."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

AXIS = "batch"

Program = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Jit:
    """One device."""

    device: jax.Device
    axis_name = None
    num_devices = 1

    def put(self, tree: Any) -> Any:
        """Puts arrays on the device."""
        return jax.device_put(tree, SingleDeviceSharding(self.device))

    def compile(self, fn: Program, donate_state: bool = False) -> Program:
        """Compiles a function of the state and other arrays.

        With `donate_state` the state given is used up, and its memory used again.
        """
        return jax.jit(fn, donate_argnums=0 if donate_state else ())


@dataclasses.dataclass(frozen=True)
class Pmap:
    """Several devices of this process, under `jax.pmap`; all arrays on each."""

    devices: tuple[jax.Device, ...]
    axis_name = AXIS

    @property
    def num_devices(self) -> int:
        return len(self.devices)

    def put(self, tree: Any) -> Any:
        """Puts a copy of the arrays on every device."""
        mesh = Mesh(np.asarray(self.devices), (AXIS,))
        return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))

    def compile(self, fn: Program, donate_state: bool = False) -> Program:
        """Compiles as `Jit.compile` does; results must be the same on every device."""
        # pmap wants a mapped argument. Everything else is whole on every device, and
        # `fn` takes its share by its index on the axis.
        indices = jnp.arange(self.num_devices)

        def mapped(_: jax.Array, state: Any, arrays: tuple[Any, ...]) -> Any:
            return fn(state, *arrays)

        compiled = jax.pmap(
            mapped,
            AXIS,
            in_axes=(0, None, None),
            out_axes=None,
            devices=self.devices,
            donate_argnums=1 if donate_state else (),
        )
        return lambda state, *arrays: compiled(indices, state, arrays)


def jit() -> Jit:
    """The first device."""
    return Jit(jax.devices()[0])


def pmap() -> Pmap:
    """All devices of this process."""
    return Pmap(tuple(jax.local_devices()))


_STRATEGIES = {"jit": jit, "pmap": pmap}

NAMES = tuple(_STRATEGIES)


def create(name: str) -> Jit | Pmap:
    """The way named, on the devices there are."""
    return _STRATEGIES[name]()
