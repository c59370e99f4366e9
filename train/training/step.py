"""The train step, and the sums of its metrics over an epoch."""

import contextlib
import functools
import math
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from train.data.images import augment
from train.data.types import Preprocessing
from train.training.optimizers.base import Capture, ExtraMetric, Optimizer
from train.training.state import AveragedTrainState, LoopState, TrainState

Metrics = dict[str, jax.Array]
# From the initial learning rate to the optimizer.
MakeTx = Callable[[jax.Array], optax.GradientTransformationExtraArgs]
TrainStep = Callable[..., tuple[TrainState, Metrics]]
# Optional entry of `metric_sums`: number of steps of the epoch after which the loss and
# all parameters were finite.
FINITE_STEPS = "finite_steps"


def train_step(
    state: TrainState,
    batch: tuple[jax.Array, jax.Array],
    rng: jax.Array,
    learning_rate: jax.Array | None = None,
    *,
    make_tx: MakeTx | None = None,
    capture: Capture | None = None,
    captures: bool | None = None,
    extra_metrics: Mapping[str, ExtraMetric] = types.MappingProxyType({}),
    label_smoothing: float = 0.0,
    ema_decay: float | None = None,
    axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
    """Trains on one batch; a pure function for jit, pmap and shard_map.

    Args:
        state: the training state.
        batch: images of shape (batch, height, width, channels), normalized, and labels
            of shape (batch,). Within a mapped axis, this device's shard.
        rng: key of the step, for dropout; equal on all devices.
        learning_rate: the initial learning rate of the run, for `make_tx`. It is an
            argument so that runs with different rates share a compiled program.
        make_tx: makes the optimizer, whose state `state` holds. Default: `state.tx`.
        capture: the optimizer's capture, see `train.training.optimizers.Optimizer`.
        captures: whether the capture measures in this step, if this is known while the
            step is traced. If it is false, what the layers sow are zeros.
        extra_metrics: the optimizer's, likewise.
        label_smoothing: share of the target that is spread over all classes, in [0, 1).
        ema_decay: decay of the moving average in an `AveragedTrainState`.
        axis_name: the mapped axis of the devices that share the batch. Batch
            normalization sees the global batch only if the model was created with the
            same `axis_name`.

    Returns:
        The next state, equal on all devices, and the metrics: the batch's mean "loss",
        its "top1" accuracy and the extra metrics.
    """
    images, labels = batch
    if axis_name is not None:
        rng = jax.random.fold_in(rng, jax.lax.axis_index(axis_name))
    collections = (
        ["batch_stats"] if capture is None else ["batch_stats", "intermediates"]
    )

    def loss_fn(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        # The context must be open while the model is traced.
        with contextlib.nullcontext() if capture is None else capture(state.step):
            logits, mutated = state.apply_fn(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                mutable=collections,
                rngs={"dropout": rng},
            )
        loss = cross_entropy(logits, labels, label_smoothing).mean()
        return loss, (logits, mutated)

    (loss, (logits, mutated)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
        state.params
    )
    sown = mutated.get("intermediates", {})
    batch_stats = mutated.get("batch_stats", {})
    metrics = {"loss": loss, "top1": jnp.mean(logits.argmax(-1) == labels)}
    if axis_name is not None:
        # XLA could not tell that the mean of zeros is zero, and would compile code for
        # new covariances into the step.
        measured = {} if captures is False else sown
        # A single pmean, so that XLA emits one collective.
        grads, measured, batch_stats, metrics = jax.lax.pmean(
            (grads, measured, batch_stats, metrics), axis_name
        )
        sown = measured or sown
    if make_tx is None:
        tx = state.tx
    else:
        assert learning_rate is not None
        tx = make_tx(learning_rate)
    updates, opt_state = tx.update(
        grads,
        state.opt_state,
        state.params,
        input_norms=sown,
        input_covariances=sown,
        # A Polyak step aims at a loss of 0, but with smoothed labels the minimum is
        # above 0.
        value=metrics["loss"] - least_loss(logits.shape[-1], label_smoothing),
    )
    metrics |= {name: metric(opt_state) for name, metric in extra_metrics.items()}
    state = state.replace(
        step=optax.safe_increment(state.step),
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
        batch_stats=batch_stats,
    )
    if isinstance(state, AveragedTrainState):
        assert ema_decay is not None
        state = state.updated(ema_decay)
    return state, metrics


def step_of(
    optimizer: Optimizer,
    captures: bool | None = None,
    **options: Any,
) -> TrainStep:
    """Binds an optimizer's capture and metrics, and other options, to `train_step`.

    Args:
        optimizer: the optimizer.
        captures: whether the returned step captures, decided while it is traced, so
            that its layers contain no conditional. It is then used only for steps for
            which `train.training.chunk.captures` returns this value. None: the capture
            itself decides, at run time if only some steps capture.
        **options: further arguments of `train_step`.
    """
    capture = optimizer.capture
    if capture is not None and captures is not None:
        # Given a Python int, the capture is decided while the step is traced.
        capture = functools.partial(_capture_at, capture, 0 if captures else 1)
    return functools.partial(
        train_step,
        capture=capture,
        captures=captures,
        extra_metrics=optimizer.extra_metrics,
        **options,
    )


def _capture_at(
    capture: Capture, step: int, _: Any
) -> contextlib.AbstractContextManager[None]:
    return capture(step)


def zero_metric_sums(extra_metrics: Iterable[str] = ()) -> Metrics:
    """Returns the metric sums at the start of an epoch.

    Args:
        extra_metrics: names of the metrics of `train_step` besides loss and accuracy.
    """
    return {name: jnp.zeros(()) for name in ("loss", "top1", *extra_metrics)}


def step_rngs(rng: jax.Array, step: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """Returns the keys of a step, for augmentation and dropout, given the run's."""
    rng = jax.random.fold_in(jax.random.fold_in(rng, 1), step)
    augment_rng, dropout_rng = jax.random.split(rng)
    return augment_rng, dropout_rng


def of_this_epoch(
    metric_sums: Metrics, step: jax.Array | int, steps_per_epoch: int
) -> Metrics:
    """Resets the sums before the first step of an epoch."""
    starts_epoch = step % steps_per_epoch == 0
    return jax.tree.map(
        lambda total: jnp.where(starts_epoch, jnp.zeros_like(total), total), metric_sums
    )


def advance(
    loop_state: LoopState,
    batch: tuple[jax.Array, jax.Array],
    dropout_rng: jax.Array,
    learning_rate: jax.Array,
    step_fn: TrainStep,
    preprocessing: Preprocessing,
) -> LoopState:
    """Runs a step on augmented uint8 images and their labels, and sums its metrics.

    Args:
        loop_state: the training state, and the sums of this epoch so far.
        batch: images and labels; within a mapped axis, this device's shard.
        dropout_rng: the key that `step_rngs` returns.
        learning_rate: the initial learning rate of the run.
        step_fn: `train_step` with its options bound.
        preprocessing: parameters of the normalization.

    Returns:
        The new state and sums.
    """
    state, metric_sums = loop_state
    images, labels = batch
    inputs = augment.normalize(images, preprocessing.mean, preprocessing.std)
    state, metrics = step_fn(state, (inputs, labels), dropout_rng, learning_rate)
    sums = {
        name: metric_sums[name] + metrics[name]
        for name in metric_sums
        if name in metrics
    }
    if FINITE_STEPS in metric_sums:
        # Non-finite values persist in sums and parameters, so the finite steps are a
        # prefix of the epoch.
        finite = jnp.isfinite(sums["loss"])
        for weight in jax.tree.leaves(state.params):
            finite &= jnp.isfinite(weight).all()
        sums[FINITE_STEPS] = metric_sums[FINITE_STEPS] + finite.astype(jnp.int32)
    return LoopState(state, sums)


def cross_entropy(
    logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0
) -> jax.Array:
    """Returns the loss of each sample, of shape (batch,)."""
    if not label_smoothing:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    one_hot = jax.nn.one_hot(labels, logits.shape[-1])
    targets = optax.smooth_labels(one_hot, label_smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def least_loss(num_classes: int, label_smoothing: float) -> float:
    """Returns the minimum of the cross entropy, which is the entropy of the targets."""
    if not label_smoothing:
        return 0.0
    others = label_smoothing / num_classes
    own = 1 - label_smoothing + others
    return -own * math.log(own) - (num_classes - 1) * others * math.log(others)
