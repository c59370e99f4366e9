"""Checkpoints of a run: the latest two and the best by test accuracy, all verified."""

import contextlib
import json
import math
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from train.errors import UserError
from train.run import checksums
from train.training import distributed

# Beside an Orbax checkpoint's arrays: its step's metadata, written with them at once.
_METADATA = "_CHECKPOINT_METADATA"
# Where earlier versions, which stored no checksum, kept the test accuracy.
_OLD_METRICS = "metrics"
_BESIDE = {"structure", "test_top1", "rows", "sha256"}
_NEVER_BEST = -1.0
# A defect of ours, or a lack of memory: no damage to a file makes Orbax raise these.
_NOT_DAMAGE = (
    TypeError,
    NameError,
    ImportError,
    AssertionError,
    MemoryError,
    jax.errors.JaxRuntimeError,
)


class DamagedCheckpoint(UserError):
    """A checkpoint that cannot be restored as it was saved."""


class Restored(NamedTuple):
    """A state that came back as it was saved."""

    step: int
    tree: Any
    rows: list[Any] | None  # As given to `save`; None if an earlier version saved it.
    damaged: dict[int, str]  # What is wrong with the steps that were passed over.

    @property
    def warning(self) -> str | None:
        """What to say of a checkpoint that could not be verified."""
        if self.rows is not None:
            return None
        return (
            f"The checkpoint of step {self.step} is of an earlier version, without a "
            "checksum: damage that leaves it readable is not noticed."
        )


class Checkpoints:
    """An Orbax checkpoint manager whose checkpoints are verified when restored.

    Args:
        directory: where they are; created if it does not exist.

    Raises:
        UserError: if the directory cannot be read.
    """

    def __init__(self, directory: Path):
        self._directory = directory.absolute()  # Orbax takes no relative path.
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(
                [preservation_policy.LatestN(2), _KeepBest(self)]
            ),
            # A background save would read arrays that the next step is given to
            # overwrite.
            enable_async_checkpointing=False,
            # One damaged checkpoint must not keep the others from being opened.
            lightweight_initialize=True,
        )
        with self._legible():
            self._manager = ocp.CheckpointManager(self._directory, options=options)
            steps = self._manager.all_steps()
        self._test_top1 = {step: self._read_test_top1(step) for step in steps}

    def save(
        self,
        step: int,
        tree: Any,
        test_top1: float | None,
        rows: Sequence[Any] = (),
    ) -> None:
        """Saves a state with its checksum, unless that step has a checkpoint.

        Args:
            step: the optimizer's step.
            tree: the state.
            test_top1: its test accuracy; None in the middle of an epoch, and then it
                is never the best.
            rows: the metrics up to this step, as JSON holds them.

        Raises:
            UserError: if it cannot be written; the earlier ones are left whole.
        """
        if step in self._manager.all_steps():
            return
        if test_top1 is None or not math.isfinite(test_top1):
            test_top1 = _NEVER_BEST
        beside = {
            "structure": checksums.of_structure(tree),
            "test_top1": test_top1,
            "rows": list(rows),
        }
        self._test_top1[step] = test_top1
        sha256 = checksums.of_contents(tree, beside)
        try:
            saved = self._manager.save(
                step,
                args=ocp.args.StandardSave(tree),
                custom_metadata=beside | {"sha256": sha256},
            )
        except _NOT_DAMAGE:
            raise
        # A full disk is an OSError here and a ValueError in TensorStore.
        except Exception as error:
            raise UserError(
                f"The checkpoint of step {step} cannot be written to "
                f"{self._directory} ({_first_line(error)}). The ones before it are "
                "whole. Make room, or restore access, and go on with --resume."
            ) from error
        if not saved:
            raise RuntimeError(
                f"Orbax did not save step {step} in {self._directory}, which holds "
                f"{self._manager.all_steps()}."
            )

    @property
    def latest_step(self) -> int | None:
        """The step of the latest checkpoint; None without any."""
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """The step of the checkpoint with the best test accuracy; None without any."""
        return next(iter(self._by_accuracy()), None)

    def restore(self, step: int, like: Any) -> Any:
        """Restores a state and verifies its checksum.

        Args:
            step: which.
            like: a state of the same structure; arrays come back as its arrays are
                placed.

        Returns:
            The state.

        Raises:
            DamagedCheckpoint: if it is not what was saved, or of another structure.
        """
        return self._restore(step, like)[0]

    def restore_latest(self, like: Any) -> Restored | None:
        """Restores the latest checkpoint that is intact; see `restore`.

        Returns:
            The state, and which later checkpoints are damaged; None without any.

        Raises:
            DamagedCheckpoint: if there are checkpoints, and none is intact.
        """
        return self._restore_first(
            sorted(self._manager.all_steps(), reverse=True), like
        )

    def restore_best(self, like: Any) -> Restored | None:
        """As `restore_latest`, in order of test accuracy."""
        return self._restore_first(self._by_accuracy(), like)

    def set_aside(self, steps: Collection[int]) -> list[Path]:
        """Moves damaged checkpoints out of the directory, to where they can be examined.

        Called in all processes, of which the first moves them.

        Returns:
            Where they are now.
        """
        moved = []
        for step in steps:
            folder = self._directory.with_name(f"damaged-{self._directory.name}")
            number, target = 1, folder / str(step)
            while os.path.lexists(target):
                number += 1
                target = folder / f"{step}-{number}"
            moved.append(target)
        # All processes have to choose the names before any of them is taken.
        distributed.any_process(False)
        if distributed.is_first():
            for step, target in zip(steps, moved, strict=True):
                target.parent.mkdir(exist_ok=True)
                os.rename(self._directory / str(step), target)
        distributed.any_process(False)
        self._manager.reload()
        for step in steps:
            del self._test_top1[step]
        return moved

    def _restore_first(self, steps: Sequence[int], like: Any) -> Restored | None:
        damaged: dict[int, str] = {}
        for step in steps:
            try:
                tree, rows = self._restore(step, like)
            except DamagedCheckpoint as error:
                damaged[step] = str(error)
            else:
                return Restored(step, tree, rows, damaged)
        if not damaged:
            return None
        raise DamagedCheckpoint(
            " ".join(damaged.values())
            + " No other checkpoint is left, and none was moved. Bring back these "
            "files from a copy, or start a new run."
        )

    def _restore(self, step: int, like: Any) -> tuple[Any, list[Any] | None]:
        tree, rows, problem = None, None, None
        try:
            tree, rows = self._restore_here(step, like)
        except _NOT_DAMAGE:
            raise
        # Damage makes Orbax raise almost anything. Raised again below, in all processes.
        except Exception as error:  # noqa: BLE001
            problem = error
        # All processes have to go on from the same step.
        if distributed.any_process(problem is not None):
            raise DamagedCheckpoint(
                f"The checkpoint {self._directory / str(step)} is damaged or does not "
                f"match the run's configuration ({_first_line(problem)})."
            ) from problem
        return tree, rows

    def _restore_here(self, step: int, like: Any) -> tuple[Any, list[Any] | None]:
        beside = None
        if not self._is_old(step):
            beside = _read_metadata(self._directory / str(step))
            if beside["structure"] != checksums.of_structure(like):
                raise ValueError("its arrays have other names, shapes or dtypes")
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        tree = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        if beside is None:
            return tree, None
        expected = beside.pop("sha256")
        if checksums.of_contents(tree, beside) != expected:
            raise ValueError("its contents do not have the checksum saved with them")
        return tree, beside["rows"]

    def _is_old(self, step: int) -> bool:
        """Whether an earlier version saved a step; damage cannot make it look so."""
        return (self._directory / str(step) / _OLD_METRICS).exists()

    def _read_test_top1(self, step: int) -> float:
        """The test accuracy of a checkpoint, which is not verified yet."""
        try:
            if self._is_old(step):
                folder = self._directory / str(step) / _OLD_METRICS
                value = json.loads((folder / _OLD_METRICS).read_text())["test_top1"]
            else:
                value = _read_metadata(self._directory / str(step))["test_top1"]
            value = float(value)
        # A checkpoint that does not tell it cannot be the best; `restore` names it.
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return _NEVER_BEST
        return value if math.isfinite(value) else _NEVER_BEST

    def _by_accuracy(self) -> list[int]:
        """The steps, the best first; of equal ones the latest."""
        return sorted(
            self._manager.all_steps(),
            key=lambda step: (self._test_top1[step], step),
            reverse=True,
        )

    @contextlib.contextmanager
    def _legible(self) -> Iterator[None]:
        """Names the directory where Orbax cannot tell which checkpoints there are."""
        try:
            yield
        except _NOT_DAMAGE:
            raise
        except Exception as error:
            raise UserError(
                f"The checkpoints in {self._directory} cannot be listed "
                f"({_first_line(error)}). Move away what does not belong there, or "
                "start a new run."
            ) from error

    def close(self) -> None:
        """Frees what the manager holds."""
        self._manager.close()


def latest_rows(directory: Path) -> list[Any] | None:
    """The rows in the latest checkpoint, not verified; None if it tells none.

    Far quicker than `Checkpoints`, which opens Orbax.
    """
    try:
        steps = [int(name) for name in os.listdir(directory) if name.isdecimal()]
        rows = _read_metadata(directory / str(max(steps)))["rows"]
    except (OSError, ValueError, RecursionError):
        return None
    return rows if isinstance(rows, list) else None


def _read_metadata(folder: Path) -> dict[str, Any]:
    value = json.loads((folder / _METADATA).read_text())
    found = value.get("custom_metadata") if isinstance(value, dict) else None
    if not isinstance(found, dict) or found.keys() != _BESIDE:
        raise ValueError("its metadata do not hold what was saved with it")
    return found


class _KeepBest:
    """Keeps the checkpoint with the best test accuracy.

    Orbax's own policy reads the metrics of all checkpoints, and fails on the first
    that is damaged.
    """

    def __init__(self, owner: Checkpoints):
        self._owner = owner

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: Any
    ) -> Sequence[bool]:
        del context
        return [info.step == self._owner.best_step for info in checkpoints]


def _first_line(error: Exception | None) -> str:
    if error is None:
        return "in another process"
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
