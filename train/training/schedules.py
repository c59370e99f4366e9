"""Learning rate schedules."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Options of the learning rate schedule."""

    schedule: Literal["constant", "steps", "cosine"] = "constant"
    """Learning rate schedule: constant, step decay, or cosine with warm restarts."""
    milestones: tuple[int, ...] = (79, 119, 159)
    """Epochs after which --schedule steps lowers the learning rate."""
    milestone_factor: float = 0.2
    """Factor on the learning rate at each milestone of --schedule steps."""
    restart_epochs: int = 100
    """Epochs between the warm restarts of --schedule cosine."""
    warmup_epochs: int = 0
    """Epochs of linear warm-up before the schedule."""


def create(
    config: ScheduleConfig, learning_rate: float | jax.Array, steps_per_epoch: int
) -> optax.Schedule:
    """Creates a learning rate schedule.

    Args:
        config: options of the schedule. Milestones count from the start of the run. The
            warm-up starts from a positive learning rate.
        learning_rate: the learning rate after the warm-up.
        steps_per_epoch: optimizer steps per epoch.

    Returns:
        A function from the step to the learning rate.
    """
    warmup_steps = config.warmup_epochs * steps_per_epoch
    if config.schedule == "constant":
        schedule = optax.constant_schedule(learning_rate)
    elif config.schedule == "steps":
        drops = [epoch * steps_per_epoch - warmup_steps for epoch in config.milestones]
        schedule = optax.piecewise_constant_schedule(
            learning_rate, dict.fromkeys(drops, config.milestone_factor)
        )
    else:
        schedule = _cosine_with_restarts(
            learning_rate, config.restart_epochs * steps_per_epoch
        )
    if not warmup_steps:
        return schedule
    warmup = optax.linear_schedule(
        learning_rate / warmup_steps, learning_rate, warmup_steps - 1
    )
    return optax.join_schedules([warmup, schedule], [warmup_steps])


def _cosine_with_restarts(
    learning_rate: float | jax.Array, period: int
) -> optax.Schedule:
    def schedule(step: jax.Array) -> jax.Array:
        return learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * (step % period) / period))

    return schedule
