"""Checkpoints of a run: the latest two and the best by accuracy, all verified."""

import contextlib
import json
import math
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from train import files
from train.errors import UserError
from train.run import checksums, orbax_output
from train.training import distributed

# Orbax writes this file with the arrays.
_METADATA = "_CHECKPOINT_METADATA"
# Where earlier versions, which stored no checksum, kept the test accuracy.
_OLD_METRICS = "metrics"
# Names of the metadata that are saved beside the arrays.
_BESIDE = {"structure", "test_top1", "rows", "sha256"}
_NEVER_BEST = -1.0
# Defects in this code or lack of memory; damaged files do not raise these.
_NOT_DAMAGE = (
    TypeError,
    NameError,
    ImportError,
    AssertionError,
    MemoryError,
    jax.errors.JaxRuntimeError,
)


class DamagedCheckpoint(UserError):
    """A checkpoint cannot be restored as it was saved."""


class Restored(NamedTuple):
    """A restored and verified state."""

    step: int
    tree: Any
    rows: list[Any] | None  # From `save`; None if an earlier version saved it.
    damaged: dict[int, str]  # Error messages of the damaged checkpoints, by step.

    @property
    def warning(self) -> str | None:
        """The warning for a checkpoint that could not be verified."""
        if self.rows is not None:
            return None
        return (
            f"The checkpoint of step {self.step} was saved by an earlier version "
            "without a checksum, so damage that leaves it readable goes unnoticed."
        )


class Checkpoints:
    """An Orbax checkpoint manager whose checkpoints are verified when restored.

    Args:
        directory: folder of the checkpoints; created if it does not exist.
        step_of: returns the step in a state, which must equal the name of its folder.
            Default: this is not checked.

    Raises:
        UserError: if the directory cannot be read, or has files that are not regular.
    """

    def __init__(self, directory: Path, step_of: Callable[[Any], int] | None = None):
        # Imported here and below, when needed, since the import takes a second.
        import orbax.checkpoint as ocp
        from orbax.checkpoint.checkpoint_managers import preservation_policy

        self._step_of = step_of
        self._directory = directory.absolute()  # Orbax rejects relative paths.
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(
                [preservation_policy.LatestN(2), _KeepBest(self)]
            ),
            # An asynchronous save would read buffers that the next step donates.
            enable_async_checkpointing=False,
            # A damaged checkpoint must not prevent opening the others.
            lightweight_initialize=True,
        )
        _check_regular(self._directory)
        with self._listing_errors():
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
        """Saves a state and its checksum, unless that step has a checkpoint.

        Args:
            step: number of optimizer steps.
            tree: the state.
            test_top1: accuracy that selects the best checkpoint: on the validation
                images if the run has any, else on the test images. The metadata files
                call both "test_top1". None within an epoch; such a checkpoint ranks
                below all that have an accuracy.
            rows: JSON-serializable metrics up to this step.

        Raises:
            UserError: if it cannot be written. Earlier checkpoints stay intact.
        """
        import orbax.checkpoint as ocp

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
        with orbax_output.silenced(UserError):
            try:
                saved = self._manager.save(
                    step,
                    args=ocp.args.StandardSave(tree),
                    custom_metadata=beside | {"sha256": sha256},
                )
            except _NOT_DAMAGE:
                raise
            # If the disk is full, TensorStore raises a ValueError.
            except Exception as error:
                raise UserError(
                    f"The checkpoint of step {step} cannot be written to "
                    f"{self._directory} ({_first_line(error)}). Earlier checkpoints "
                    "are intact. Free some space or restore access, then use --resume."
                ) from error
        if not saved:
            raise RuntimeError(
                f"Orbax did not save step {step} in {self._directory}, which has "
                f"{self._manager.all_steps()}."
            )

    @property
    def latest_step(self) -> int | None:
        """The step of the latest checkpoint; None if there are no checkpoints."""
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """The step with the best accuracy, see `save`; None without checkpoints."""
        return next(iter(self._by_accuracy()), None)

    def restore_latest(self, like: Any) -> Restored | None:
        """Restores the latest intact checkpoint.

        Args:
            like: a state of the same structure, whose shardings the restored arrays
                get.

        Returns:
            The state and the damaged later checkpoints; None if there are no
            checkpoints.

        Raises:
            DamagedCheckpoint: if all checkpoints are damaged.
        """
        return self._restore_first(
            sorted(self._manager.all_steps(), reverse=True), like
        )

    def restore_best(self, like: Any) -> Restored | None:
        """Restores the intact checkpoint with the best accuracy, see `save`.

        The others are verified, too: one with a damaged accuracy may be the best.
        """
        steps = self._by_accuracy()
        restored = self._restore_first(steps, like)
        if restored is not None:
            for step in steps[steps.index(restored.step) + 1 :]:
                try:
                    self._restore(step, like)
                except DamagedCheckpoint as error:
                    restored.damaged[step] = str(error)
        return restored

    def set_aside(self, steps: Collection[int]) -> list[Path]:
        """Moves damaged checkpoints to a folder next to the directory.

        All processes must call this; process 0 moves the files.

        Returns:
            The new paths.
        """
        moved = []
        folder = self._directory.with_name(f"damaged-{self._directory.name}")
        if steps and folder.is_symlink():
            raise UserError(
                f"{folder} is a symbolic link, which no run creates. Remove it."
            )
        for step in steps:
            number, target = 1, folder / str(step)
            while os.path.lexists(target):
                number += 1
                target = folder / f"{step}-{number}"
            moved.append(target)
        # A barrier: all processes must choose the names before process 0 uses them.
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
            + " No other checkpoint is left, and none was moved. Restore these "
            "files from a backup, or start a new run."
        )

    def _restore(self, step: int, like: Any) -> tuple[Any, list[Any] | None]:
        tree, rows, problem = None, None, None
        try:
            tree, rows = self._restore_here(step, like)
        except _NOT_DAMAGE:
            raise
        # Orbax raises many types for damaged files; re-raised below in all processes.
        except Exception as error:  # noqa: BLE001
            problem = error
        # All processes must resume from the same step.
        if distributed.any_process(problem is not None):
            raise DamagedCheckpoint(
                f"The checkpoint {self._directory / str(step)} is damaged or does not "
                f"match the run's configuration ({_first_line(problem)})."
            ) from problem
        return tree, rows

    def _restore_here(self, step: int, like: Any) -> tuple[Any, list[Any] | None]:
        import orbax.checkpoint as ocp

        beside = None
        if not self._is_old(step):
            beside = _read_metadata(self._directory / str(step))
            if beside["structure"] != checksums.of_structure(like):
                raise ValueError("the names, shapes or dtypes of its arrays differ")
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        tree = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        if self._step_of is not None and (found := self._step_of(tree)) != step:
            raise ValueError(f"it is the checkpoint of step {found}, renamed or copied")
        if beside is None:
            return tree, None
        expected = beside.pop("sha256")
        if checksums.of_contents(tree, beside) != expected:
            raise ValueError("its contents do not match its checksum")
        return tree, beside["rows"]

    def _is_old(self, step: int) -> bool:
        """Returns whether an earlier version saved a step, even if it is damaged."""
        return (self._directory / str(step) / _OLD_METRICS).exists()

    def _read_test_top1(self, step: int) -> float:
        """Reads the `test_top1` given to `save`, without verifying the checkpoint."""
        try:
            if self._is_old(step):
                folder = self._directory / str(step) / _OLD_METRICS
                value = json.loads(files.read(folder / _OLD_METRICS))["test_top1"]
            else:
                value = _read_metadata(self._directory / str(step))["test_top1"]
            value = float(value)
        # An unreadable checkpoint ranks last; restoring it reports the damage.
        except (
            UserError,
            OSError,
            ValueError,
            KeyError,
            TypeError,
            RecursionError,
        ):
            return _NEVER_BEST
        return value if math.isfinite(value) else _NEVER_BEST

    def _by_accuracy(self) -> list[int]:
        """Returns the steps, best first; of equal ones, the latest first."""
        return sorted(
            self._manager.all_steps(),
            key=lambda step: (self._test_top1[step], step),
            reverse=True,
        )

    @contextlib.contextmanager
    def _listing_errors(self) -> Iterator[None]:
        """Names the directory in errors of Orbax when it lists checkpoints."""
        try:
            yield
        except _NOT_DAMAGE:
            raise
        except Exception as error:
            raise UserError(
                f"The checkpoints in {self._directory} cannot be listed "
                f"({_first_line(error)}). Move files that are not checkpoints away, "
                "or start a new run."
            ) from error

    def close(self) -> None:
        """Frees the resources of the manager."""
        self._manager.close()


def latest_rows(directory: Path) -> list[Any] | None:
    """Reads the rows in the latest checkpoint without verifying it; None if impossible.

    Much faster than `Checkpoints`, which starts Orbax.
    """
    try:
        steps = [int(name) for name in os.listdir(directory) if name.isdecimal()]
        rows = _read_metadata(directory / str(max(steps)))["rows"]
    except (UserError, OSError, ValueError, RecursionError):
        return None
    return rows if isinstance(rows, list) else None


def _read_metadata(folder: Path) -> dict[str, Any]:
    value = json.loads(files.read(folder / _METADATA))
    found = value.get("custom_metadata") if isinstance(value, dict) else None
    if not isinstance(found, dict) or found.keys() != _BESIDE:
        raise ValueError("its metadata is incomplete")
    return found


def _check_regular(directory: Path) -> None:
    """Raises a UserError if there is a pipe, which Orbax would wait for."""
    for path in directory.rglob("*"):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UserError(f"{path} is not a regular file. Move it away.")


class _KeepBest:
    """Preserves the checkpoint with the best accuracy, see `Checkpoints.save`.

    Orbax's own policy reads the metrics of all checkpoints and fails on the first
    damaged one.
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
