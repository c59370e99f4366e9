"""Learning rate schedules."""

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
    """Creates a learning rate schedule.

    Args:
        name: "constant"; "steps", which multiplies the learning rate by
            `milestone_factor` at each milestone; or "cosine", which decays it to 0 and
            restarts.
        learning_rate: the learning rate after the warm-up.
        steps_per_epoch: optimizer steps per epoch.
        milestones: for "steps", the epochs of the run after which the rate drops.
        milestone_factor: for "steps", the factor at each milestone.
        restart_epochs: for "cosine", the period of the warm restarts.
        warmup_epochs: epochs of linear warm-up before the schedule, from a positive
            learning rate.

    Returns:
        A function from the step to the learning rate.
    """
    warmup_steps = warmup_epochs * steps_per_epoch
    if name == "constant":
        schedule = optax.constant_schedule(learning_rate)
    elif name == "steps":
        # Milestones count from the start of the run and include the warm-up.
        drops = [epochs * steps_per_epoch - warmup_steps for epochs in milestones]
        schedule = optax.piecewise_constant_schedule(
            learning_rate, dict.fromkeys(drops, milestone_factor)
        )
    elif name == "cosine":
        schedule = _cosine_with_restarts(
            learning_rate, restart_epochs * steps_per_epoch
        )
    else:
        raise ValueError(
            f"unknown schedule {name!r}: expected one of {', '.join(NAMES)}"
        )
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
