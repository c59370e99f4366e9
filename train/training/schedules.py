"""Learning rates over training."""

import jax
import jax.numpy as jnp
import optax

NAMES = ("constant", "steps", "cosine")


def create(
    name: str,
    learning_rate: float,
    steps_per_epoch: int,
    *,
    milestones: tuple[int, ...],
    milestone_factor: float,
    restart_epochs: int,
    warmup_epochs: int,
) -> optax.Schedule:
    """Makes a schedule: step -> learning rate.

    Args:
        name: "constant"; "steps", times `milestone_factor` after each milestone; or
            "cosine", from the learning rate to 0 and again.
        learning_rate: the rate after the warm-up.
        steps_per_epoch: optimizer steps in an epoch.
        milestones: for "steps", after how many epochs of the run the rate drops.
        milestone_factor: for "steps", what the rate is multiplied by.
        restart_epochs: for "cosine", the period of the warm restarts.
        warmup_epochs: epochs of linear warm-up before the schedule; its first step
            already learns.

    Returns:
        The schedule.
    """
    warmup_steps = warmup_epochs * steps_per_epoch
    if name == "constant":
        schedule = optax.constant_schedule(learning_rate)
    elif name == "steps":
        # Milestones count from the start of the run, with the warm-up.
        drops = [epochs * steps_per_epoch - warmup_steps for epochs in milestones]
        schedule = optax.piecewise_constant_schedule(
            learning_rate, dict.fromkeys(drops, milestone_factor)
        )
    elif name == "cosine":
        schedule = _cosine_with_restarts(
            learning_rate, restart_epochs * steps_per_epoch
        )
    else:
        raise ValueError(f"unknown schedule {name!r}: give one of {', '.join(NAMES)}")
    if not warmup_steps:
        return schedule
    warmup = optax.linear_schedule(
        learning_rate / warmup_steps, learning_rate, warmup_steps - 1
    )
    return optax.join_schedules([warmup, schedule], [warmup_steps])


def _cosine_with_restarts(learning_rate: float, period: int) -> optax.Schedule:
    def schedule(step: jax.Array) -> jax.Array:
        return learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * (step % period) / period))

    return schedule
