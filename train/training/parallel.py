"""Strategies for running a program on several devices, behind one interface.

Every strategy replicates the parameters and shards the batch. A program takes its shard
of a batch from replicated arrays with `local_shard`, or is passed arrays that
`shard_batch` sharded. Under `Mesh` a shard is the global batch, which XLA partitions,
inserting the collectives. Under `Pmap` and `ShardMap` it is the batch of one device,
and the program averages over the mapped axis, `axis_name`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from train.errors import UserError

AXIS = "batch"

Program = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Devices:
    """Base class of the strategies.

    Attributes:
        devices: all devices that take part, of all processes.
        name: the strategy, as in `create`.
        axis_name: the mapped axis in a program; None if programs see the global batch.
    """

    devices: tuple[jax.Device, ...]
    name: ClassVar[str]
    axis_name: ClassVar[str | None]

    @property
    def num_devices(self) -> int:
        """Number of devices."""
        return len(self.devices)

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        """All devices along one axis."""
        return jax.make_mesh(
            (self.num_devices,),
            (AXIS,),
            # The default, Explicit, refuses operations whose sharding is ambiguous.
            axis_types=(AxisType.Auto,),
            devices=self.devices,
        )

    @property
    def _replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def _sharded(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(AXIS))

    def replicate(self, tree: Any) -> Any:
        """Copies arrays, equal in all processes, to every device."""
        if jax.process_count() == 1:
            return jax.device_put(tree, self._replicated)
        # device_put cannot send random keys to devices of other processes.
        return _identity(self._replicated)(tree)

    def round_up_batch(self, batch_size: int) -> int:
        """Returns the batch size rounded up to a multiple of the number of devices."""
        return -(-batch_size // self.num_devices) * self.num_devices

    def rows(self, batch_size: int) -> np.ndarray:
        """Returns the rows of a batch that go to this process's devices, ascending."""
        shards = self._sharded.addressable_devices_indices_map((batch_size,))
        rows = np.arange(batch_size)
        return np.sort(np.concatenate([rows[shard] for shard in shards.values()]))

    def shard_batch(self, tree: Any) -> Any:
        """Shards a batch's arrays over the devices, given this process's `rows`."""
        return jax.make_array_from_process_local_data(self._sharded, tree)

    def local_shard(self, tree: Any) -> Any:
        """Within a program, returns the shard of replicated arrays of a batch."""
        raise NotImplementedError

    def compile(
        self, fn: Program, donate_state: bool = False, batch_arrays: int = 0
    ) -> Program:
        """Compiles a function of the state and other arrays.

        Args:
            fn: the function. Its results must be equal on every device.
            donate_state: donate the state's buffers.
            batch_arrays: number of trailing arrays that come from `shard_batch`.

        Returns:
            The program.
        """
        raise NotImplementedError


class Mesh(Devices):
    """`jax.jit` with a batch sharded over the devices of all processes."""

    name = "mesh"
    axis_name = None

    def local_shard(self, tree: Any) -> Any:
        return jax.lax.with_sharding_constraint(tree, self._sharded)

    def compile(
        self, fn: Program, donate_state: bool = False, batch_arrays: int = 0
    ) -> Program:
        del batch_arrays  # They carry their sharding.
        return jax.jit(
            fn, out_shardings=self._replicated, donate_argnums=_donated(donate_state)
        )


class _Mapped(Devices):
    """Base class of strategies whose programs run on one device's shard."""

    axis_name = AXIS

    def local_shard(self, tree: Any) -> Any:
        def one(batch: jax.Array) -> jax.Array:
            shards = batch.reshape(self.num_devices, -1, *batch.shape[1:])
            return shards[jax.lax.axis_index(AXIS)]

        return jax.tree.map(one, tree)


class Pmap(_Mapped):
    """`jax.pmap` over the devices of one process."""

    name = "pmap"

    def shard_batch(self, tree: Any) -> Any:
        return super().shard_batch(
            jax.tree.map(
                lambda array: array.reshape(self.num_devices, -1, *array.shape[1:]),
                tree,
            )
        )

    def compile(
        self, fn: Program, donate_state: bool = False, batch_arrays: int = 0
    ) -> Program:
        # pmap needs a mapped argument; all others may be replicated.
        indices = jnp.arange(self.num_devices)

        def mapped(_: jax.Array, state: Any, replicated: Any, batch: Any) -> Any:
            return fn(state, *replicated, *batch)

        compiled = jax.pmap(
            mapped,
            AXIS,
            in_axes=(0, None, None, 0),
            out_axes=None,
            devices=self.devices,
            donate_argnums=1 if donate_state else (),
        )
        return lambda state, *arrays: compiled(
            indices, state, *_split(arrays, batch_arrays)
        )


class ShardMap(_Mapped):
    """`jax.shard_map` over the devices of all processes."""

    name = "shard_map"

    def compile(
        self, fn: Program, donate_state: bool = False, batch_arrays: int = 0
    ) -> Program:
        mapped = jax.shard_map(
            lambda state, replicated, batch: fn(state, *replicated, *batch),
            mesh=self.mesh,
            in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec(AXIS)),
            out_specs=PartitionSpec(),
            # With the check, gradients of replicated arrays arrive summed over the N
            # devices, and their mean would be N times too large.
            check_vma=False,
        )
        return jax.jit(
            lambda state, *arrays: mapped(state, *_split(arrays, batch_arrays)),
            donate_argnums=_donated(donate_state),
        )


_STRATEGIES: dict[str, type[Devices]] = {
    "auto": Mesh,
    "jit": Mesh,
    "mesh": Mesh,
    "pmap": Pmap,
    "shard_map": ShardMap,
}
NAMES = tuple(_STRATEGIES)
_ONE_PROCESS = ("jit", "pmap")


def create(name: str) -> Devices:
    """Creates a strategy for the available devices.

    Args:
        name: "mesh" (or "auto", the same), "pmap" or "shard_map" for all devices; "jit"
            for the first device, as a mesh of one.

    Raises:
        UserError: if the strategy does not support several processes, and there are
            several.
    """
    if name in _ONE_PROCESS and jax.process_count() > 1:
        raise UserError(
            f"--parallel {name} supports a single process, and this is one of "
            f"{jax.process_count()}. Use --parallel mesh or shard_map."
        )
    devices = jax.devices()[:1] if name == "jit" else jax.devices()
    return _STRATEGIES[name](tuple(devices))


def folds_in_device(name: str | None) -> bool:
    """Returns whether random keys, and thereby dropout masks, differ between devices.

    `train_step` folds the device's index into the key of a program on a mapped axis,
    but not into the key of a program that sees the global batch.
    """
    strategy = _STRATEGIES.get(name or "")
    return strategy is not None and strategy.axis_name is not None


def _donated(donate_state: bool) -> Sequence[int]:
    return (0,) if donate_state else ()


def _split(
    arrays: tuple[Any, ...], batch_arrays: int
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Splits arrays into the replicated ones and the sharded ones, which are last."""
    place = len(arrays) - batch_arrays
    return arrays[:place], arrays[place:]


@functools.cache
def _identity(sharding: NamedSharding) -> Program:
    return jax.jit(lambda tree: tree, out_shardings=sharding)
