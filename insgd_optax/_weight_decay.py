"""Weight decay that asks for no parameters where there is none."""

from typing import Any

import optax

from insgd_optax._numbers import check_not_negative, is_number


def add_decayed_weights(
    weight_decay: Any, mask: Any = None
) -> optax.GradientTransformation:
    """`optax.add_decayed_weights`, or nothing for None and 0, as in `optax.sgd`.

    `optax.inject_hyperparams` makes an array of a default of 0.0, which cannot be told
    from any other, and would ask for parameters. It leaves None as it is.

    Raises:
        ValueError: if `weight_decay` is negative.
    """
    if weight_decay is None:
        return optax.identity()
    check_not_negative(weight_decay=weight_decay)
    if is_number(weight_decay) and weight_decay == 0:
        return optax.identity()
    return optax.add_decayed_weights(weight_decay, mask)
