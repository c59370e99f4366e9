"""Optimizers of the user's own, and any of Optax, named MODULE:NAME."""

import dataclasses

import optax

from train import own_code
from train.errors import UserError
from train.training.optimizers.base import (
    LearningRate,
    Make,
    Optimizer,
    OptimizerConfig,
    SownShapes,
)

# Given to every function that takes them, as to the optimizers here.
_ALWAYS = {"momentum", "weight_decay"}


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
        with own_code.running(f"Making the optimizer {reference}"):
            made = own_code.load(reference)(learning_rate, **given)
        if isinstance(made, Optimizer):
            return made._replace(tx=optax.with_extra_args_support(made.tx))
        if not isinstance(made, optax.GradientTransformation):
            raise UserError(
                f"{reference} must return an optax.GradientTransformation, but "
                f"returned an object of type {type(made).__name__}."
            )
        return Optimizer(optax.with_extra_args_support(made))

    return make
