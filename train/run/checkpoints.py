"""Checkpoints of a run: the latest two, and the best by test accuracy."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from train.errors import UserError

_METRIC = "test_top1"
# A defect of ours, or a lack of memory: no damage to a file makes Orbax raise these.
_NOT_DAMAGE = (
    TypeError,
    NameError,
    ImportError,
    AssertionError,
    MemoryError,
    jax.errors.JaxRuntimeError,
)


class Checkpoints:
    """An Orbax checkpoint manager, set up and guarded.

    Args:
        directory: where they are; made if need be.

    Raises:
        UserError: if one cannot be read.
    """

    def __init__(self, directory: Path):
        self._directory = directory.absolute()  # Orbax takes no relative path.
        options = ocp.CheckpointManagerOptions(
            # `max_to_keep` with `best_fn` would drop the latest, from which to resume.
            preservation_policy=preservation_policy.AnyPreservationPolicy(
                [
                    preservation_policy.LatestN(2),
                    preservation_policy.BestN(get_metric_fn=_metric, n=1),
                ]
            ),
            best_fn=_metric,
            # A background save would read arrays that the next step is given to
            # overwrite.
            enable_async_checkpointing=False,
        )
        with self._legible():
            self._manager = ocp.CheckpointManager(self._directory, options=options)
            _ = self._manager.best_step()  # Reads the metrics of all.

    def save(self, step: int, tree: Any, test_top1: float | None) -> None:
        """Saves a state, unless one of that step is there.

        Args:
            step: the optimizer's step.
            tree: the state.
            test_top1: its test accuracy; None in the middle of an epoch, and then it
                is never the best.
        """
        if step in self._manager.all_steps():
            return
        saved = self._manager.save(
            step,
            args=ocp.args.StandardSave(tree),
            metrics={_METRIC: -1.0 if test_top1 is None else test_top1},
        )
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
        return self._manager.best_step()

    def restore(self, step: int, like: Any) -> Any:
        """Restores a state.

        Args:
            step: which.
            like: a state of the same structure; arrays come back as its arrays are
                placed.

        Returns:
            The state.

        Raises:
            UserError: if the checkpoint is damaged or of another structure.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        except _NOT_DAMAGE:
            raise
        # Whatever Orbax raises of damage (Exception itself, AttributeError, ...), the
        # user's remedy is the same.
        except Exception as error:
            others = [s for s in self._manager.all_steps() if s != step]
            remedy = (
                f"Delete that folder to go on from step {max(others)}."
                if others
                else "Start a new run."
            )
            raise UserError(
                f"The checkpoint {self._directory / str(step)} is damaged or does not "
                f"match the run's configuration ({_first_line(error)}). {remedy}"
            ) from error

    @contextlib.contextmanager
    def _legible(self) -> Iterator[None]:
        """Names the folder where Orbax cannot tell which checkpoints there are."""
        try:
            yield
        except _NOT_DAMAGE:
            raise
        except Exception as error:
            raise UserError(
                f"A checkpoint in {self._directory} is damaged "
                f"({_first_line(error)}). Delete the folder of the step that is, or "
                "start a new run."
            ) from error

    def close(self) -> None:
        """Frees what the manager holds."""
        self._manager.close()


def _metric(metrics: dict[str, float]) -> float:
    if isinstance(metrics, dict) and isinstance(metrics.get(_METRIC), int | float):
        return metrics[_METRIC]
    raise ValueError(f"metrics hold no {_METRIC}: {metrics}")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
