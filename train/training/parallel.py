"""How a program is spread over devices: one table, one interface.

Every way keeps arrays whole on every device and shares out each batch. A program asks
`local_shard` for its part of a batch it took from whole arrays, or is given its part of
one that `shard_batch` put there in parts. Under `Jit` and `Mesh` that part is the whole batch,
which XLA divides, and adds the collectives by itself. Under `Pmap` and `ShardMap` it is
a device's own, the program has the axis `axis_name`, and averages over it.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from train.errors import UserError

AXIS = "batch"

Program = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Jit:
    """One device."""

    device: jax.Device
    axis_name = None
    num_devices = 1

    def replicate(self, tree: Any) -> Any:
        """Puts arrays on the device."""
        return jax.device_put(tree, SingleDeviceSharding(self.device))

    def round_up_batch(self, batch_size: int) -> int:
        """The least batch of at least so many that all devices have equal shares of."""
        return batch_size

    def rows(self, batch_size: int) -> np.ndarray:
        """Which rows of a batch this process's devices take, in rising order."""
        return np.arange(batch_size)

    def shard_batch(self, tree: Any) -> Any:
        """Puts a batch's arrays on the devices in parts, of which this process has
        those of its `rows`."""
        return self.replicate(tree)

    def local_shard(self, tree: Any) -> Any:
        """A device's share of arrays whose first axis is the batch, in a program."""
        return tree

    def compile(
        self, fn: Program, donate_state: bool = False, batch_arrays: int = 0
    ) -> Program:
        """Compiles a function of the state and other arrays.

        Args:
            fn: the function.
            donate_state: the state given is used up, and its memory used again.
            batch_arrays: how many of the arrays, the last ones, are from `shard_batch`.

        Returns:
            The program.
        """
        del batch_arrays  # Nothing is in parts.
        return jax.jit(fn, donate_argnums=_donated(donate_state))


@dataclasses.dataclass(frozen=True)
class _Several:
    """What the ways for several devices have in common."""

    devices: tuple[jax.Device, ...]

    @property
    def num_devices(self) -> int:
        return len(self.devices)

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        """All devices, in one row."""
        return jax.make_mesh(
            (self.num_devices,),
            (AXIS,),
            # By itself it would be Explicit, and want a sharding for every operation.
            axis_types=(AxisType.Auto,),
            devices=self.devices,
        )

    @property
    def _whole(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def _in_parts(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(AXIS))

    def replicate(self, tree: Any) -> Any:
        """Puts a copy of the arrays, the same in every process, on every device."""
        if jax.process_count() == 1:
            return jax.device_put(tree, self._whole)
        # device_put takes no random keys to devices of other processes.
        return _identity(self._whole)(tree)

    def round_up_batch(self, batch_size: int) -> int:
        """See `Jit.round_up_batch`."""
        return -(-batch_size // self.num_devices) * self.num_devices

    def rows(self, batch_size: int) -> np.ndarray:
        """See `Jit.rows`."""
        parts = self._in_parts.addressable_devices_indices_map((batch_size,))
        rows = np.arange(batch_size)
        return np.sort(np.concatenate([rows[part] for part in parts.values()]))

    def shard_batch(self, tree: Any) -> Any:
        """See `Jit.shard_batch`."""
        return jax.make_array_from_process_local_data(self._in_parts, tree)


class Mesh(_Several):
    """Several devices of all processes, as one: `jax.jit` of a batch sharded on them."""

    axis_name = None

    def local_shard(self, tree: Any) -> Any:
        """See `Jit.local_shard`."""
        return jax.lax.with_sharding_constraint(tree, self._in_parts)

    def compile(
        self, fn: Program, donate_state: bool = False, batch_arrays: int = 0
    ) -> Program:
        """See `Jit.compile`."""
        del batch_arrays  # They come with their sharding.
        return jax.jit(
            fn, out_shardings=self._whole, donate_argnums=_donated(donate_state)
        )


class _Mapped(_Several):
    """The ways in which a program is written for one device of several."""

    axis_name = AXIS

    def local_shard(self, tree: Any) -> Any:
        """See `Jit.local_shard`."""

        def one(whole: jax.Array) -> jax.Array:
            shares = whole.reshape(self.num_devices, -1, *whole.shape[1:])
            return shares[jax.lax.axis_index(AXIS)]

        return jax.tree.map(one, tree)


class Pmap(_Mapped):
    """Several devices of this process, under `jax.pmap`."""

    def shard_batch(self, tree: Any) -> Any:
        """See `Jit.shard_batch`."""
        return super().shard_batch(
            jax.tree.map(
                lambda array: array.reshape(self.num_devices, -1, *array.shape[1:]),
                tree,
            )
        )

    def compile(
        self, fn: Program, donate_state: bool = False, batch_arrays: int = 0
    ) -> Program:
        """See `Jit.compile`; results must be the same on every device."""
        # pmap wants a mapped argument. Everything else is whole on every device, and
        # `fn` takes its share by its index on the axis.
        indices = jnp.arange(self.num_devices)

        def mapped(_: jax.Array, state: Any, whole: Any, batch: Any) -> Any:
            return fn(state, *whole, *batch)

        compiled = jax.pmap(
            mapped,
            AXIS,
            in_axes=(0, None, None, 0),
            out_axes=None,
            devices=self.devices,
            donate_argnums=1 if donate_state else (),
        )
        return lambda state, *arrays: compiled(
            indices, state, *_divide(arrays, batch_arrays)
        )


class ShardMap(_Mapped):
    """Several devices of all processes, under `jax.shard_map`."""

    def compile(
        self, fn: Program, donate_state: bool = False, batch_arrays: int = 0
    ) -> Program:
        """See `Jit.compile`; results must be the same on every device."""
        mapped = jax.shard_map(
            lambda state, whole, batch: fn(state, *whole, *batch),
            mesh=self.mesh,
            in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec(AXIS)),
            out_specs=PartitionSpec(),
            # With the check, gradients of what all devices share arrive summed up
            # already, and their mean would be too large by the number of devices.
            check_vma=False,
        )
        return jax.jit(
            lambda state, *arrays: mapped(state, *_divide(arrays, batch_arrays)),
            donate_argnums=_donated(donate_state),
        )


Devices = Jit | Mesh | Pmap | ShardMap


def jit() -> Jit:
    """The first device.

    Raises:
        UserError: in several processes.
    """
    _check_one_process("jit")
    return Jit(jax.devices()[0])


def mesh() -> Mesh:
    """All devices of all processes."""
    return Mesh(tuple(jax.devices()))


def pmap() -> Pmap:
    """All devices of this process.

    Raises:
        UserError: if there are others.
    """
    _check_one_process("pmap")
    return Pmap(tuple(jax.devices()))


def shard_map() -> ShardMap:
    """All devices of all processes."""
    return ShardMap(tuple(jax.devices()))


def auto() -> Jit | Mesh:
    """The first device if it is the only one, or else all."""
    return jit() if jax.device_count() == 1 else mesh()


_STRATEGIES: dict[str, Callable[[], Devices]] = {
    "auto": auto,
    "jit": jit,
    "mesh": mesh,
    "pmap": pmap,
    "shard_map": shard_map,
}

NAMES = tuple(_STRATEGIES)


def create(name: str) -> Devices:
    """The way named, on the devices there are.

    Raises:
        UserError: if it is none for several processes, and there are several.
    """
    return _STRATEGIES[name]()


def _check_one_process(name: str) -> None:
    if jax.process_count() > 1:
        raise UserError(
            f"--parallel {name} is for one process, and this is one of "
            f"{jax.process_count()}. Give --parallel mesh or shard_map."
        )


def _donated(donate_state: bool) -> Sequence[int]:
    return (0,) if donate_state else ()


def _divide(
    arrays: tuple[Any, ...], batch_arrays: int
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The arrays that are whole, and the last ones, of a batch."""
    place = len(arrays) - batch_arrays
    return arrays[:place], arrays[place:]


@functools.cache
def _identity(sharding: NamedSharding) -> Program:
    return jax.jit(lambda tree: tree, out_shardings=sharding)
