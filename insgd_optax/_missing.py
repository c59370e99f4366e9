"""Error messages for missing statistics: what is missing, why, and the remedy."""

from collections.abc import Mapping, Sequence
from typing import Any

from insgd_optax._matching import (
    COVARIANCE_NAME,
    NAME,
    RELEASED_NAME,
    Sown,
    has_entry,
)
from insgd_optax._paths import Path, path_list

_CAPTURES = {
    NAME: "capture_input_norms",
    COVARIANCE_NAME: "capture_input_covariances",
    RELEASED_NAME: "capture_released_norms",
}


def check_missing(missing: str) -> None:
    if missing not in ("error", "keep"):
        raise ValueError(f'missing={missing!r} is not known: give "error" or "keep"')


def missing_argument(name: str, given: Mapping[str, Any]) -> str:
    """The error message for an `update` without the statistics of this name.

    Args:
        name: name of the statistic.
        given: the other keyword arguments of `update`.
    """
    other = NAME if name == COVARIANCE_NAME else COVARIANCE_NAME
    but = "" if given.get(f"{other}s") is None else f", although {other}s is given"
    return (
        f"{name}s is missing{but}: call tx.update(grads, opt_state, params,"
        f" {name}s=sown), where sown is the second value that"
        " model.apply(..., mutable=['intermediates']) returns inside"
        f" `with insgd_optax.capture_{name}s():`. flax's TrainState does not forward"
        " it: use insgd_optax.TrainState; optax.lookahead and optax.contrib.sam do not"
        " accept it"
    )


def likely_causes(name: str, more: str = "") -> str:
    """Why a scaled weight may lack a statistic; `more` adds causes specific to it."""
    return f"""Likely causes:
  - the model was applied outside `with insgd_optax.capture_{name}s():`
  - model.apply was not given mutable=["intermediates"] (beside "batch_stats")
  - an NNX model was called outside insgd_optax.nnx's capture_{name}s, or not
    through nnx.capture(model, nnx.Intermediate)
  - nn.scan or nn.vmap stacks the parameters along an axis other than 0 and lacks
    "intermediates" in its variable_axes
  - the layer is an NNX module inside nnx.bridge.ToLinen, which discards sown values
  - the layer is inside nn.WeightNorm or nn.while_loop, which discard sown values,
    or inside nn.cond or nn.switch with `variables` that leave "intermediates" out
  - the layer's type is your own: name it in capture_{name}s(layers=...) or call
    insgd_optax.sow_{name}(self, x) in it{more}
  - the layer was not used in this pass: missing="keep" leaves its state as it is"""


def absent_in(
    given: Any, absent: Sequence[Path], sown: Sown, name: str, causes: str
) -> str:
    """The error message for scaled weights without a statistic in a pass.

    Args:
        given: what was passed to `update`.
        absent: the weights.
        sown: the statistics in `given`.
        name: the name of the statistic.
        causes: what `likely_causes` returns for it.
    """
    what = name.replace("_", " ")
    if not has_entry(given, name):
        for other, capture in _CAPTURES.items():
            if has_entry(given, other):
                causes = (
                    f"{name}s has {other}s instead: the model was applied inside"
                    f" {capture}. Apply it inside {_CAPTURES[name]}, or inside both"
                )
                break
    return (
        f"these scaled weights have no {what}:\n{path_list(absent)}\n"
        f"Layers with a {what.removeprefix('input ')}:\n"
        f"{path_list(list(sown)) or '  none'}\n{causes}"
    )


def absent_in_like(like: Any, absent: Sequence[Path], name: str, causes: str) -> str:
    """The error message for scaled weights that `like` lacks.

    Args:
        like: the argument `input_norms_like` or `input_covariances_like`.
        absent: the weights.
        name: the name of the statistic.
        causes: what `likely_causes` returns for it.
    """
    what = name.replace("_", " ")
    if not has_entry(like, name):
        causes = (
            f"{name}s_like holds no {what} at all: give it what"
            f" insgd_optax.{name}_shapes(model, rngs, x) returns inside"
            f" `with insgd_optax.{_CAPTURES[name]}():` (for NNX models"
            f" insgd_optax.nnx.{name}_shapes(model, x) inside insgd_optax.nnx's"
            " capture)"
        )
    return (
        f"{name}s_like has no {what} for these scaled weights:\n{path_list(absent)}\n"
        f"{causes}"
    )
