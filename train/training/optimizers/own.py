"""Optimizers of the user's own, and most of Optax's, named MODULE:NAME."""

import contextlib
import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from train import own_code
from train.errors import OwnCodeError, UserError
from train.training.optimizers.base import (
    LearningRate,
    Make,
    Optimizer,
    OptimizerConfig,
    SownShapes,
)

# Given to every function that takes them, as to the optimizers here.
_ALWAYS = {"momentum", "weight_decay"}
# Python's message if a call of the optimizer's update lacks arguments.
_MISSING = re.compile(r"missing \d+ required keyword-only arguments?: (.+)")


def options(reference: str) -> frozenset[str]:
    """The fields of `OptimizerConfig` that a function takes by name."""
    given = own_code.parameters(reference)
    fields = {field.name for field in dataclasses.fields(OptimizerConfig)}
    return frozenset(name for name in fields if own_code.takes(given, name))


def default_learning_rate(reference: str) -> float | None:
    """The default of a function's first argument; None if it is not a number."""
    given = own_code.parameters(reference)
    if not given:
        raise UserError(
            f"{reference} must take the learning rate as its first argument, but takes "
            "none."
        )
    default = next(iter(given.values())).default
    return float(default) if isinstance(default, int | float) else None


def maker(reference: str) -> Make:
    """Returns a `Make` that calls a function of the user's own."""

    def make(
        learning_rate: LearningRate, config: OptimizerConfig, _: SownShapes | None
    ) -> Optimizer:
        defaults = OptimizerConfig()
        given = {
            name: value
            for name in sorted(options(reference))
            if (value := getattr(config, name)) != getattr(defaults, name)
            # Other defaults, such as INSGD's eps, do not suit the user's function.
            or name in _ALWAYS
        }

        def made_with(learning_rate: LearningRate) -> Optimizer:
            with own_code.running(f"Making the optimizer {reference}"):
                made = own_code.load(reference)(learning_rate, **given)
            if isinstance(made, optax.GradientTransformation):
                made = Optimizer(made)
            if not isinstance(made, Optimizer):
                raise UserError(
                    f"{reference} must return an optax.GradientTransformation, but "
                    f"returned an object of type {type(made).__name__}."
                )
            attributed = own_code.running(f"The capture of the optimizer {reference}")
            return made._replace(
                tx=_attributed(reference, made.tx),
                capture=made.capture and attributed(made.capture),
                # When it captures is the user's own code, so each step asks for it.
                capture_every=1,
            )

        made = made_with(learning_rate)
        _check_supported(reference, made, lambda: made_with(_at_first(learning_rate)))
        return made

    return make


def _attributed(
    reference: str, tx: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """Attributes exceptions in a step to the user's own code."""

    def init_fn(params: optax.Params) -> optax.OptState:
        with own_code.running(f"Starting the optimizer {reference}"):
            return tx.init(params)

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        with own_code.running(f"A step of the optimizer {reference}"):
            found, state = tx.update(updates, state, params, **extra_args)
        if jax.tree.map(jnp.shape, found) != jax.tree.map(jnp.shape, updates):
            raise UserError(
                f"{reference}: its update must return updates of the shapes of the "
                "gradients, but returned others."
            )
        return found, state

    return optax.with_extra_args_support(type(tx)(init_fn, update_fn))


def _at_first(learning_rate: LearningRate) -> float:
    return float(learning_rate(0) if callable(learning_rate) else learning_rate)


def _check_supported(
    reference: str, made: Optimizer, make_with_number: Callable[[], Optimizer]
) -> None:
    """Raises a UserError for an optimizer that a run cannot train with.

    Args:
        reference: its MODULE:NAME.
        made: the optimizer.
        make_with_number: makes it with a number as its learning rate.
    """
    try:
        state = _try_step(reference, made)
    except OwnCodeError as error:
        if missing := _MISSING.search(str(error.__cause__)):
            raise UserError(
                f"{reference} is not supported: its update needs {missing[1]}. A "
                "training step passes the gradients, the parameters, and the loss as "
                "'value'."
            ) from error
        # If a number fails too, the optimizer may need the network's own parameters.
        with contextlib.suppress(OwnCodeError):
            _try_step(reference, make_with_number())
            raise UserError(
                f"{reference} is not supported: it takes a number as its learning "
                "rate, but not a schedule, which every run passes."
            ) from error
        return
    if any(
        jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        for leaf in jax.tree.leaves(state)
    ):
        raise UserError(
            f"{reference} is not supported: its state holds a PRNG key, which "
            "checkpoints cannot store."
        )


def _try_step(reference: str, made: Optimizer) -> Any:
    """Traces a step on one small weight; returns the shapes of the new state.

    Raises:
        OwnCodeError: if the step raises an exception, which is its cause.
    """

    def step(params: optax.Params) -> optax.OptState:
        _, state = made.tx.update(
            params,
            made.tx.init(params),
            params,
            input_norms={},
            input_covariances={},
            value=jnp.zeros(()),
        )
        return state

    with own_code.running(f"A step of the optimizer {reference}"):
        return jax.eval_shape(step, {"kernel": jnp.ones((2, 2))})
