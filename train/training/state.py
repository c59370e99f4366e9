"""The training state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import insgd_optax
from train.training.networks import train_option


class TrainState(insgd_optax.TrainState):
    """The library's train state with the statistics of batch normalization."""

    batch_stats: Any

    @property
    def variables(self) -> dict[str, Any]:
        """Variables with which the network is evaluated."""
        return {"params": self.params, "batch_stats": self.batch_stats}


class AveragedTrainState(TrainState):
    """A `TrainState` with a moving average of parameters and running statistics."""

    average: Any  # Like `TrainState.variables`.

    @property
    def variables(self) -> dict[str, Any]:
        """The average."""
        return self.average

    def updated(self, decay: float) -> "AveragedTrainState":
        """Moves the average after a step.

        Within the first steps it forgets the initial parameters sooner: the decay after
        step t is at most (1 + t) / (10 + t), as in TensorFlow.
        """
        step = jnp.asarray(self.step, jnp.float32)
        share = 1 - jnp.minimum(decay, (1 + step) / (10 + step))
        average = jax.tree.map(
            lambda mean, new: (mean + share * (new - mean)).astype(mean.dtype),
            self.average,
            super().variables,
        )
        return self.replace(average=average)


def with_average(state: TrainState) -> AveragedTrainState:
    """Starts the average of a state's weights."""
    fields = {field: getattr(state, field) for field in state.__dataclass_fields__}
    # Arrays of its own: those of the state are donated.
    return AveragedTrainState(**fields, average=jax.tree.map(jnp.copy, state.variables))


def without_average(state: TrainState) -> TrainState:
    """Returns the state without its average, so that its own weights are evaluated."""
    names = TrainState.__dataclass_fields__
    return TrainState(**{name: getattr(state, name) for name in names})


class LoopState(NamedTuple):
    """Training state and the metric sums of the current epoch.

    `state.step` determines the position in the epoch and, with the run's seed, all
    random numbers, so a resumed run repeats an uninterrupted one.
    """

    state: TrainState
    # Sums over steps: shape=(), dtype=float32; int32 for `step.FINITE_STEPS`.
    metric_sums: dict[str, jax.Array]

    def to_checkpoint(self) -> dict[str, Any]:
        """Returns the tree that a checkpoint stores.

        Its keys are part of the file format.
        """
        return {"state": self.state, "totals": self.metric_sums}

    @classmethod
    def from_checkpoint(cls, tree: dict[str, Any]) -> "LoopState":
        """Inverts `to_checkpoint`."""
        return cls(tree["state"], tree["totals"])

    @staticmethod
    def step_of_checkpoint(tree: dict[str, Any]) -> int:
        """Returns the step of a tree of `to_checkpoint`."""
        return int(tree["state"].step)


def create_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    rng: jax.Array,
    image_shape: tuple[int, ...],
) -> TrainState:
    """Initializes the parameters, the statistics and the optimizer state.

    Args:
        model: the network.
        tx: the optimizer.
        rng: key of the initial parameters.
        image_shape: (height, width, channels).

    Returns:
        The state before the first step.
    """
    return state_program(model, tx, image_shape)(rng)


def state_program(
    model: nn.Module, tx: optax.GradientTransformation, image_shape: tuple[int, ...]
) -> Callable[[jax.Array], TrainState]:
    """Returns `create_state` as a program of the key alone, compiled once."""
    # On CPUs, LLVM takes seconds to optimize the random draws, which run once.
    options = {"xla_backend_optimization_level": 1}
    return jax.jit(
        _initializer(model, tx, image_shape),
        compiler_options=options if jax.default_backend() == "cpu" else None,
    )


def _apply_fn(model: nn.Module) -> Callable[..., Any]:
    """Returns `model.apply`, wrapped if necessary so that it takes `train`."""
    if train_option(model, False):
        return model.apply

    def apply(variables: Any, *args: Any, train: bool, **kwargs: Any) -> Any:
        del train  # It does the same in training and evaluation.
        return model.apply(variables, *args, **kwargs)

    return apply


def abstract_state(
    model: nn.Module, tx: optax.GradientTransformation, image_shape: tuple[int, ...]
) -> TrainState:
    """Returns the shapes and dtypes of `create_state` without computing it."""
    return jax.eval_shape(_initializer(model, tx, image_shape), jax.random.key(0))


def _initializer(
    model: nn.Module, tx: optax.GradientTransformation, image_shape: tuple[int, ...]
) -> Callable[[jax.Array], TrainState]:
    def init(rng: jax.Array) -> TrainState:
        variables = model.init(
            rng, jnp.zeros((1, *image_shape)), **train_option(model, False)
        )
        params = variables["params"]
        return TrainState(
            # A Python int would cause a second compilation.
            step=jnp.zeros((), jnp.int32),
            apply_fn=_apply_fn(model),
            params=params,
            tx=tx,
            opt_state=tx.init(params),
            batch_stats=variables.get("batch_stats", {}),
        )

    return init
