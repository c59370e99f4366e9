"""Errors that name the cause: another statistic, or a tree that holds none."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from insgd_optax import (
    capture_input_covariances,
    capture_input_norms,
    insgd,
    lms_newton,
)

X = jnp.ones((2, 4))
PARAMS = {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}
NORMS = insgd, "input_norms", capture_input_norms
COVARIANCES = lms_newton, "input_covariances", capture_input_covariances


@pytest.mark.parametrize(
    ("optimizer", "other"), [(NORMS, COVARIANCES), (COVARIANCES, NORMS)]
)
def test_the_statistic_of_another_capture_is_an_error(optimizer, other):
    make, argument, capture = optimizer
    _, wrong, wrong_capture = other
    tx = make(0.1)

    def update():
        with wrong_capture():
            _, sown = nn.Dense(3).apply({"params": PARAMS}, X, mutable=True)
        return tx.update(PARAMS, tx.init(PARAMS), PARAMS, **{argument: sown})

    message = f"{argument} has {wrong} instead: .* inside {wrong_capture.__name__}. "
    with pytest.raises(ValueError, match=f"{message}.* inside {capture.__name__}"):
        jax.eval_shape(update)


@pytest.mark.parametrize("optimizer", [NORMS, COVARIANCES])
def test_a_tree_without_statistics_as_like_is_an_error(optimizer):
    make, argument, capture = optimizer
    name = argument.removesuffix("s")
    message = re.escape(
        f"{argument}_like holds no {name.replace('_', ' ')} at all: give it what"
        f" insgd_optax.{name}_shapes(model, rngs, x) returns inside"
        f" `with insgd_optax.{capture.__name__}():`"
    )
    with pytest.raises(ValueError, match=message):
        make(0.1, **{f"{argument}_like": PARAMS}).init(PARAMS)


@pytest.mark.parametrize(
    ("optimizer", "other"), [(NORMS, COVARIANCES), (COVARIANCES, NORMS)]
)
def test_the_argument_of_another_optimizer_is_an_error(optimizer, other):
    make, argument, _ = optimizer
    tx = make(0.1)
    message = f"{argument} is missing, although {other[1]} is given: call tx.update"
    with pytest.raises(ValueError, match=message):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS, **{other[1]: {}})
