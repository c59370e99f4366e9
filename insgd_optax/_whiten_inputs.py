"""Any optimizer, in coordinates in which the input of each layer is white."""

from typing import Any, NamedTuple

import optax
from jax.typing import ArrayLike

from insgd_optax._covariance_link import covariance_link, multiply
from insgd_optax._covariance_state import ScaleByInputCovarianceState
from insgd_optax._paths import Scope


class WhitenInputsState(NamedTuple):
    """State of `whiten_inputs`.

    Attributes:
        covariance: a `ScaleByInputCovarianceState` in which each layer's `inverse` is
            the square root of D.
        inner_state: the state of the inner transformation.
    """

    covariance: ScaleByInputCovarianceState
    inner_state: optax.OptState


def whiten_inputs(
    inner: optax.GradientTransformation,
    decay: ArrayLike = 0.95,
    *,
    damping: ArrayLike = 1.0,
    eps: ArrayLike = 1e-8,
    preserve_norm: bool = True,
    max_dim: int | None = None,
    scope: Scope = "kernel",
    missing: str = "error",
    input_covariances_like: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Runs an optimizer in coordinates in which each layer's input is white.

    A layer that computes W^T x also computes (D^{-1/2} W)^T (D^{1/2} x). D is the
    inverse of the input's damped covariance: without damping, D^{1/2} x is white; with
    damping, it is closer to white than x. The inner transformation is given the
    gradient with respect to D^{-1/2} W, and its update is mapped back to W:

    .. math::
        D_t &= \Bigl(\hat A_t + \bigl(\delta \operatorname{tr}(\hat A_t) / d
            + \epsilon\bigr) I\Bigr)^{-1} \\
        \tilde U_t &= \text{inner}\bigl(D_t^{1/2} G_t\bigr) \\
        U_t &= D_t^{1/2} \, \tilde U_t

    where A_t with a hat is the bias-corrected running covariance of the input, d the
    length of an input vector, G_t the gradient, delta `damping`, epsilon `eps`, and the
    root is the symmetric one: see `scale_by_input_covariance`, of which this is the
    generalization. With `optax.identity()` for `inner`, the two are the same. With an
    inner transformation that keeps no state and is equivariant under rotations of the
    input, such as Muon without momentum, and without damping, `eps` and
    `preserve_norm`, training does not change if an invertible linear map is applied to
    the input of a layer and undone in its initial kernel.

    With `preserve_norm`, both multiplications keep the Frobenius norm of each weight's
    gradient or update, so that the update is as long as that of `inner`, and learning
    rates that suit `inner` are a good first choice.

    Args:
        inner: the transformation. It is given the parameters W as they are, so it
            should contain no weight decay: chain weight decay after `whiten_inputs`.
            It should not rely on W changing by exactly its updates either, as
            `optax.contrib.schedule_free` does: wrap that around `whiten_inputs`.
        decay: the decay of the covariance per capture, in [0, 1).
        damping: delta, at least 0 and finite, in units of the mean eigenvalue of A.
        eps: epsilon, at least 0, in units of the input squared.
        preserve_norm: whether each weight's update keeps its Frobenius norm.
        max_dim: see `scale_by_input_covariance`.
        scope: see `scale_by_input_covariance`. `inner` is given the gradients of all
            weights; those of weights out of scope are unchanged.
        missing: see `scale_by_input_covariance`.
        input_covariances_like: see `scale_by_input_covariance`.

    Returns:
        A transformation whose `update`, like that of `scale_by_input_covariance`,
        requires the keyword `input_covariances`, and passes all keywords on to `inner`.
        Its state is a `WhitenInputsState`. If a root cannot be computed (A singular, no
        damping), the previous one, at first the identity, is kept, and
        `covariance.failures` in the state is incremented.

    Raises:
        TypeError: if `inner` is not an optimizer; see also `scale_by_input_covariance`.
        ValueError: see `scale_by_input_covariance`.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
        >>> from insgd_optax import capture_input_covariances, whiten_inputs
        >>> model = nn.Dense(4)
        >>> x = jax.random.normal(jax.random.key(0), (64, 8))
        >>> x = x * jnp.array([[9.0, 3.0] + [1.0] * 6])
        >>> params = model.init(jax.random.key(1), x)["params"]
        >>> learning_rate = optax.linear_schedule(0.2, 0.0, 50)
        >>> tx = whiten_inputs(optax.contrib.muon(learning_rate))
        >>> def loss_fn(params):
        ...     with capture_input_covariances():
        ...         y, sown = model.apply(
        ...             {"params": params}, x, mutable=["intermediates"]
        ...         )
        ...     return jnp.mean((y - x[:, :4]) ** 2), sown
        >>> @jax.jit
        ... def train_step(params, opt_state):
        ...     (loss, sown), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        ...     updates, opt_state = tx.update(
        ...         grads, opt_state, params, input_covariances=sown
        ...     )
        ...     return optax.apply_updates(params, updates), opt_state, loss
        >>> opt_state = tx.init(params)
        >>> losses = []
        >>> for step in range(50):
        ...     params, opt_state, loss = train_step(params, opt_state)
        ...     losses.append(float(loss))
        >>> losses[-1] < 0.01 * losses[0]
        True

    Source: specific to this library. Natural Neural Networks (Desjardins et al., 2015,
    arXiv:1507.00210) also whiten the input of each layer by a reparametrization of its
    weights; SOAP (Vyas et al., 2024, arXiv:2409.11321) runs Adam in a rotated, not
    whitened, basis.
    """
    if not (hasattr(inner, "init") and hasattr(inner, "update")):
        given = getattr(inner, "__name__", repr(inner))
        raise TypeError(
            "whiten_inputs takes an optimizer, as in whiten_inputs(optax.adam(1e-3)),"
            f" not {given}"
        )
    link = covariance_link(
        decay,
        damping=damping,
        eps=eps,
        preserve_norm=preserve_norm,
        max_dim=max_dim,
        scope=scope,
        missing=missing,
        input_covariances_like=input_covariances_like,
        root=True,
    )
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: optax.Params) -> WhitenInputsState:
        return WhitenInputsState(link.init(params), inner.init(params))

    def update_fn(
        updates: optax.Updates,
        state: WhitenInputsState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, WhitenInputsState]:
        updates, covariance = link.update(
            updates, state.covariance, params, **extra_args
        )
        updates, inner_state = inner.update(
            updates, state.inner_state, params, **extra_args
        )
        updates, covariance = multiply(updates, covariance, preserve_norm)
        return updates, WhitenInputsState(covariance, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
