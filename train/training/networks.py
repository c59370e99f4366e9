"""Networks by name: those of `models`, and the user's own, MODULE:NAME.

Their options are written NAME=VALUE.
"""

import ast
import functools
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import models
from train import own_code
from train.errors import UserError

CHOICES = f"{', '.join(models.names())}, or {own_code.FORM}"
# Arguments that are not options of a network here, and why.
_SET_ELSEWHERE = {
    "dtype": "the compute dtype has its own option",
    "axis_name": "it follows from the devices",
}
# Collections that a network may have; a run handles no others.
_COLLECTIONS = {"params", "batch_stats", "intermediates"}


def check_name(name: str) -> None:
    """Raises a ValueError that lists the names, unless `name` is a network's."""
    if not own_code.is_reference(name):
        try:
            models.check_options(name, {})
        except models.NetworkError as error:
            raise ValueError(
                f"{str(error).removesuffix('.')}, or {own_code.FORM} for one of your "
                "own"
            ) from error


def check(name: str, options: Mapping[str, Any]) -> None:
    """Checks options of a network, without making it.

    Args:
        name: name of the network.
        options: values by name.

    Raises:
        models.NetworkError: unless the network has these options.
        UserError: if it is the user's own and is not found.
    """
    for option, reason in _SET_ELSEWHERE.items():
        if option in options:
            raise models.OptionError(f"{option} is not an option here: {reason}")
    if not own_code.is_reference(name):
        models.check_options(name, options)
        return
    given = own_code.parameters(name)
    known = [
        option
        for option in given
        if own_code.takes(given, option)
        and option not in ("num_classes", "parent", "name", *_SET_ELSEWHERE)
    ]
    open_ended = any(
        each.kind is inspect.Parameter.VAR_KEYWORD for each in given.values()
    )
    for option in options:
        if option not in known and not open_ended:
            raise models.OptionError(
                f"The network {name!r} has no option {option!r}. Its options are: "
                f"{', '.join(known) or 'none'}."
            )
    missing = [
        option
        for option in known
        if given[option].default is inspect.Parameter.empty and option not in options
    ]
    if missing:
        raise models.OptionError(
            f"The network {name!r} needs a value for {', '.join(missing)}: "
            f"--model-options {missing[0]}=VALUE."
        )


def create(
    name: str,
    num_classes: int = 10,
    *,
    dtype: jnp.dtype,
    axis_name: str | None = None,
    options: Mapping[str, Any],
) -> nn.Module:
    """Creates a network.

    Args:
        name: name of the network, or MODULE:NAME.
        num_classes: number of logits.
        dtype: compute dtype.
        axis_name: the mapped axis over which to average batch statistics.
        options: other arguments of the network, by name.

    Returns:
        A Linen module.

    Raises:
        models.NetworkError: if the network does not have these options.
        UserError: if the user's own code does not return a module, or `dtype` is not
            float32 and the code does not take it.
        OwnCodeError: if the user's own code raises an exception.
    """
    if not own_code.is_reference(name):
        return models.create(
            name, num_classes=num_classes, dtype=dtype, axis_name=axis_name, **options
        )
    check(name, options)
    build, given = own_code.load(name), own_code.parameters(name)
    if dtype != jnp.float32 and not own_code.takes(given, "dtype"):
        raise UserError(
            f"--dtype {dtype}: {name} has no argument dtype. Add one, or leave the "
            "option out."
        )
    arguments = {"num_classes": num_classes, "dtype": dtype, "axis_name": axis_name}
    with own_code.running(f"Making the network {name}"):
        model = build(
            **{n: value for n, value in arguments.items() if own_code.takes(given, n)},
            **options,
        )
    if not isinstance(model, nn.Module):
        raise UserError(
            f"{name} must be or return a flax.linen.Module, but returned an object of "
            f"type {type(model).__name__}."
        )
    return model


def check_logits(
    name: str, model: nn.Module, image_shape: tuple[int, ...], num_classes: int
) -> None:
    """Checks what a network of the user's own makes of an image.

    Raises:
        UserError: if that is anything but logits, or the network keeps variables in
            collections other than "params" and "batch_stats", has no parameters, or has
            some that cannot be trained.
        OwnCodeError: if it raises an exception.
    """
    if not own_code.is_reference(name):
        return
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with own_code.running(f"The network {name}, on images of shape {image_shape},"):
        logits, variables = jax.eval_shape(
            functools.partial(model.init_with_output, **train_option(model, False)),
            jax.random.key(0),
            image,
        )
    if (
        not isinstance(logits, jax.ShapeDtypeStruct)
        or logits.shape != (1, num_classes)
        or not jnp.issubdtype(logits.dtype, jnp.floating)
    ):
        raise UserError(
            f"{name} must return logits of shape (batch, {num_classes}), the number of "
            f"classes, but returned {_described(logits)} for a batch of one image."
        )
    if unknown := sorted(variables.keys() - _COLLECTIONS):
        raise UserError(
            f"{name} keeps variables in the collections {', '.join(unknown)}. A run "
            "trains params and updates batch_stats; it has no others."
        )
    params = jax.tree_util.tree_leaves_with_path(variables.get("params"))
    if not params:
        raise UserError(f"{name} has no parameters, so there is nothing to train.")
    for path, leaf in params:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            where = jax.tree_util.keystr(path, simple=True, separator="/")
            raise UserError(
                f"The parameter {where} of {name} is {leaf.dtype}, but only "
                "floating-point parameters can be trained."
            )


def train_option(model: nn.Module, train: bool) -> dict[str, Any]:
    """Returns the keyword `train` for a network's call, if the call accepts it.

    The user's own networks need not accept it.
    """
    given = inspect.signature(type(model).__call__).parameters
    return {"train": train} if own_code.takes(given, "train") else {}


def _described(logits: Any) -> str:
    if isinstance(logits, jax.ShapeDtypeStruct):
        return f"{logits.dtype} of shape {logits.shape}"
    return f"an object of type {type(logits).__name__}"


def parse_options(texts: Iterable[str]) -> dict[str, Any]:
    """Parses options of a network.

    Args:
        texts: options as NAME=VALUE, such as "stem=cifar", "dropout=0.5",
            "layer_norm=False" or "stage_sizes=1x1x1". The value is a Python literal,
            sizes separated by "x", or a string.

    Returns:
        The values by name.

    Raises:
        ValueError: if one is malformed or repeated.
    """
    options: dict[str, Any] = {}
    for text in texts:
        name, value = _parse_option(text)
        if name in options:
            raise ValueError(f"must name each option once, got {name} twice")
        options[name] = value
    return options


def _parse_option(text: str) -> tuple[str, Any]:
    """Parses NAME=VALUE; sizes such as 1x1x1 are a tuple."""
    name, _, value = text.partition("=")
    if not (name and value):
        raise ValueError(f"must be NAME=VALUE, such as stem=cifar, got {text!r}")
    if "x" in value and value.replace("x", "").isdecimal():
        sizes = value.split("x")
        if all(sizes):
            return name, tuple(map(int, sizes))
    try:
        return name, ast.literal_eval(value)
    # The parser may exceed its limits on nesting and digits.
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return name, value
