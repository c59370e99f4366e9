"""The rule: multiply each layer's gradient by the inverse covariance of its input."""

from typing import Any

import optax
from jax.typing import ArrayLike

from insgd_optax._covariance_link import covariance_link
from insgd_optax._paths import Scope


def scale_by_input_covariance(
    decay: ArrayLike = 0.95,
    *,
    damping: ArrayLike = 1.0,
    eps: ArrayLike = 1e-8,
    preserve_norm: bool = True,
    max_dim: int | None = None,
    scope: Scope = "kernel",
    missing: str = "error",
    input_covariances_like: Any = None,
    initial_covariance: float | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies each layer's gradient by the inverse covariance of its input.

    For a layer with kernel W of shape (d, m), whose n input vectors in this pass are
    the rows of X_t, and whose incoming update is G_t,

    .. math::
        A_t &= \beta A_{t-1} + (1 - \beta) X_t^T X_t / n \\
        D_t &= \Bigl(\hat A_t + \bigl(\delta \operatorname{tr}(\hat A_t) / d
            + \epsilon\bigr) I\Bigr)^{-1}, \quad \hat A_t = A_t / (1 - \beta^t) \\
        U_t &= D_t G_t \\
        U_t &\leftarrow U_t \, \|G_t\| / \|U_t\| \quad \text{with } preserve\_norm

    where beta is `decay`, delta `damping` and epsilon `eps`. The covariance is not
    centered. Each layer of a stack, each group of a grouped convolution and each index
    of a batch axis has its own matrix and trace; the diagonal blocks of a long input
    vector (see `max_dim`) share a trace. The covariance is passed to `update` as the
    keyword `input_covariances`: see `capture_input_covariances`, whose `when` sets how
    often it is measured. A pass that did not capture changes neither A nor D, and t
    counts captures.

    Place it directly after the transformation whose updates it should precondition:
    first in a chain for SGD, after `scale_by_input_power()` for INSGD, after
    `optax.scale_by_adam()` for Adam, always before weight decay and before momentum
    such as `dampened_trace`. With `preserve_norm` only the directions of the updates
    change, so that a learning rate that suits the chain without this transformation is
    a good first choice.

    Args:
        decay: beta, in [0, 1). 0 takes the covariance of the last capture.
        damping: delta, at least 0 and finite, in units of the mean eigenvalue of A.
            With `preserve_norm`, large values leave the update nearly unchanged.
        eps: epsilon, at least 0, in units of the input squared.
        preserve_norm: whether each weight's update keeps its Frobenius norm. Without
            it the update has Newton's scale, about 1 / x^2 times the gradient's, and
            the learning rate and the damping need to be tuned anew.
        max_dim: the maximum number of rows of a matrix, at least 2; None is 768, the
            default of `capture_input_covariances`. The covariance of a longer input
            vector is approximated: by a Kronecker product of kernel positions and
            channels if it lies along three or more axes of the kernel, as in a
            two-dimensional convolution; else by diagonal blocks, of at least two
            entries along an axis.
            Capture with the same `max_dim`, or with one of at least the length of every
            input vector. Unused with `input_covariances_like`, which determines the
            layout.
        scope: which weights are scaled: "kernel", every parameter of that name, or a
            function from a parameter's path, a tuple such as ("Dense_0", "kernel"), to
            True or False. All others pass through.
        missing: what happens to a scaled weight without a covariance in this pass:
            "error", or "keep" its D.
        input_covariances_like: what `input_covariance_shapes` returns. It is needed
            where the shape of a kernel does not tell which of its axes are inputs:
            attention without biases, `nn.DenseGeneral` with `batch_dims` or with
            several output axes and no bias, grouped convolutions, `nn.ConvLocal`,
            `nn.ConvTranspose` with `transpose_kernel`, `nn.Einsum`, layers stacked by
            `nn.scan` or `nn.vmap`; and for `conv_covariance="kronecker"`.
        initial_covariance: a number a > 0: A_0 = a I, without bias correction, as in
            RLS. None starts from the first capture.

    Returns:
        A transformation whose `update` requires the keyword `input_covariances`, the
        mutated variables of the pass that gave the gradients, or their "intermediates"
        collection. Updates have the gradients' shapes and dtypes. If a factorization
        fails (A singular, no damping), the previous D, at first the identity, is kept,
        and `failures` in the state is incremented. Its state is a
        `ScaleByInputCovarianceState`. `update` can be differentiated with respect to
        the updates, but not to decay, damping and eps.

    Raises:
        TypeError: on construction, if an option that must be a number is not one.
        ValueError: on construction, if a number or option is out of range; from
            `init`, if no parameter is in scope; from `init` or `update`, if covariances
            are missing or do not fit. The message names the weights.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> from insgd_optax import (
        ...     capture_input_covariances, scale_by_input_covariance)
        >>> model, x = nn.Dense(1), jnp.array([[2.0, 1.0], [-2.0, 1.0]])
        >>> params = model.init(jax.random.key(0), x)["params"]
        >>> with capture_input_covariances():
        ...     _, sown = model.apply(
        ...         {"params": params}, x, mutable=["intermediates"]
        ...     )
        >>> tx = scale_by_input_covariance(damping=0.0, preserve_norm=False)
        >>> grads = {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)}
        >>> updates, _ = tx.update(grads, tx.init(params), input_covariances=sown)
        >>> print(updates["kernel"].ravel().round(3))  # 1 / (8 / 2), 1 / (2 / 2)
        [0.25 1.  ]

    Source: LMS-Newton (Widrow and Stearns, 1985) for every layer of a network; with
    another damping, FOOF (Benzing, 2022, arXiv:2201.12250). With one sample, decay 0,
    no damping and `preserve_norm=False`, it is Eq. 25 of the paper, NLMS.
    `preserve_norm` is specific to this library.
    """
    return covariance_link(
        decay,
        damping=damping,
        eps=eps,
        preserve_norm=preserve_norm,
        max_dim=max_dim,
        scope=scope,
        missing=missing,
        input_covariances_like=input_covariances_like,
        initial_covariance=initial_covariance,
    )
