"""Random layers, inputs, dtypes, norms and options: P is finite and equals NumPy's."""

import collections
import functools
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from insgd_optax import capture_input_norms, scale_by_input_power

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

CASES = 1000
LARGEST = float(np.finfo(np.float32).max)
SMALLEST = float(np.finfo(np.float32).tiny)


class Layer(NamedTuple):
    """A layer with its input."""

    module: nn.Module
    shapes: tuple[tuple[int, ...], ...]
    vectors: Callable[[np.ndarray], np.ndarray]  # The input vectors, one per row.
    capture: Mapping[str, Any] = types.MappingProxyType({})


def by_sample(x):
    return x.reshape(len(x), -1)


def by_token(x):
    return x.reshape(-1, x.shape[-1])


def fields(kernel, stride, pad, groups=1):
    """The receptive fields of a 2D convolution, by sample, place and group."""

    def vectors(x):
        x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        _, height, width, channels = x.shape
        return np.stack(
            [
                x[
                    :, i : i + kernel, j : j + kernel, g : g + channels // groups
                ].reshape(len(x), -1)
                for i in range(0, height - kernel + 1, stride)
                for j in range(0, width - kernel + 1, stride)
                for g in range(0, channels, channels // groups)
            ]
        ).reshape(-1, kernel * kernel * channels // groups)

    return vectors


MAPS = ((2, 5, 4, 4), (3, 3, 3, 2))
NORM_LAYERS = {"norm_layers": True}
PATCH = {"conv_input": "patch"}
LAYERS = {
    "dense": Layer(nn.Dense(3), ((4, 5), (1, 1)), by_token),
    "dense on tokens": Layer(nn.Dense(2), ((2, 3, 4), (2, 2, 2, 3)), by_token),
    "dense general": Layer(
        nn.DenseGeneral((2,), axis=(1, -1)),
        ((2, 3, 4, 5),),
        lambda x: np.moveaxis(x, 2, 1).reshape(-1, x.shape[1] * x.shape[3]),
    ),
    "einsum": Layer(
        nn.Einsum((4, 2), "...i,io->...o", use_bias=False), ((3, 2, 4),), by_token
    ),
    "convolution": Layer(nn.Conv(2, (3, 3)), MAPS, by_sample),
    "grouped convolution": Layer(
        nn.Conv(4, (3, 3), feature_group_count=2), MAPS, by_sample
    ),
    "transposed convolution": Layer(nn.ConvTranspose(2, (2, 2)), MAPS, by_sample),
    "fields of a convolution": Layer(
        nn.Conv(2, (3, 3), padding="VALID"), MAPS, fields(3, 1, 0), PATCH
    ),
    "fields with zeros around": Layer(
        nn.Conv(2, (3, 3), padding=1, strides=2), MAPS, fields(3, 2, 1), PATCH
    ),
    "fields of groups": Layer(
        nn.Conv(4, (2, 2), padding="VALID", feature_group_count=2),
        MAPS,
        fields(2, 1, 0, groups=2),
        PATCH,
    ),
    "batch normalization": Layer(
        nn.BatchNorm(use_running_average=False), MAPS, by_sample, NORM_LAYERS
    ),
    "group normalization": Layer(nn.GroupNorm(2), MAPS, by_sample, NORM_LAYERS),
    "layer normalization": Layer(nn.LayerNorm(), ((2, 3, 4),), by_token, NORM_LAYERS),
}
SPOILED = {
    "nothing": None,
    "nan": np.nan,
    "inf": -np.inf,
    "the largest number": "max",
}


class Batch(NamedTuple):
    """The input of a layer in one step."""

    seed: int
    scale: float
    spoiled: str

    def array(self, shape, dtype):
        rng = np.random.default_rng(self.seed)
        x = self.scale * rng.normal(size=shape)
        value = SPOILED[self.spoiled]
        if value is not None:
            largest = float(jnp.finfo(dtype).max)
            x.flat[rng.integers(x.size)] = largest if value == "max" else value
        return jnp.asarray(x, dtype)


batches = st.builds(
    Batch,
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([0.0, 1e-30, 1e-2, 1.0, 30.0]),
    spoiled=st.sampled_from([*3 * ["nothing"], *SPOILED]),
)


@functools.cache
def sown(name, shape, dtype, p):
    """A compiled function from a layer's input to the value that it sows."""
    layer = LAYERS[name]
    module = layer.module.copy(dtype=dtype)

    @jax.jit
    def norm(x):
        variables = module.init(jax.random.key(0), jnp.zeros(shape, dtype))
        with capture_input_norms(p, **layer.capture):
            _, mutated = module.apply(
                variables, x, mutable=["intermediates", "batch_stats"]
            )
        return mutated["intermediates"]["input_norm"]

    return norm


@functools.cache
def update(normalizer):
    """A compiled update of a gradient of ones, with decay and eps as arguments."""

    @jax.jit
    def step(state, norm, decay, eps):
        tx = scale_by_input_power(decay, normalizer=normalizer, eps=eps)
        grads = {"kernel": jnp.ones((1, 1))}
        norms = {"input_norm": (jnp.reshape(norm[0], (1, 1)),)}
        updates, state = tx.update(grads, state, input_norms=norms)
        return updates["kernel"], state

    return step


def mean_power(vectors, p):
    """The mean of ||x||_p^p in float64, as float32 holds it."""
    powers = np.abs(vectors.astype(np.float64))
    with np.errstate(over="ignore"):
        powers = powers if p == np.inf else powers**p
        norms = powers.max(axis=1) if p == np.inf else powers.sum(axis=1)
        total = norms.sum()
    if not total <= LARGEST:
        return np.nan
    return 0.0 if total < 1e-37 else total / len(norms)


def next_power(power, norm, decay):
    """P is 0 until the first norm above 0, and never again."""
    average = decay * power + (1 - decay) * norm
    return max(average, SMALLEST) if power > 0 else norm


def divisor(power, normalizer, eps):
    if power == 0:
        return 1.0
    if normalizer == "log":
        return max(np.log(power), eps)
    return eps + power if normalizer == "power" else 1 + np.log1p(power)


@pytest.mark.slow
def test_p_is_finite_and_equals_numpys(cases, report):
    counts = collections.Counter()

    @hypothesis.settings(
        max_examples=cases(CASES),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(
        name=st.sampled_from(sorted(LAYERS)),
        which_shape=st.integers(0, 1),
        dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
        p=st.sampled_from([1, 2, 3, np.inf]),
        given=st.lists(batches, min_size=1, max_size=4),
        normalizer=st.sampled_from(["log", "power", "log1p"]),
        # XLA flushes subnormal numbers to 0.
        decay=st.floats(0, 0.984375, width=32, allow_subnormal=False),
        eps=st.floats(1e-3, 1),
    )
    def check(name, which_shape, dtype, p, given, normalizer, decay, eps):
        layer = LAYERS[name]
        shape = layer.shapes[which_shape % len(layer.shapes)]
        state = scale_by_input_power().init({"kernel": jnp.ones((1, 1))})
        expected = 0.0
        for batch in given:
            x = batch.array(shape, dtype)
            norm = mean_power(layer.vectors(np.asarray(x, np.float64)), p)
            if np.isfinite(norm):
                expected = next_power(expected, norm, decay)
            updates, state = update(normalizer)(
                state, sown(name, shape, dtype, p)(x), decay, eps
            )
            power = float(state.power["kernel"])
            assert np.isfinite(power)
            np.testing.assert_allclose(power, expected, rtol=1e-4)
            scale = 1 / divisor(power, normalizer, eps)
            # XLA flushes subnormal numbers to 0.
            np.testing.assert_allclose(
                np.ravel(updates), scale, rtol=1e-3, atol=SMALLEST
            )
        counts[name] += 1

    check()
    report(
        f"{sum(counts.values())} cases of {len(counts)} kinds of layers, "
        f"{sown.cache_info().currsize} of them compiled"
    )
