"""The settings of a context reach every trace, whatever JAX has cached before."""

import asyncio
import functools
import threading

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import insgd_optax.nnx
from insgd_optax import capture_input_norms, capture_released_norms, input_norm_shapes
from insgd_optax._capture import listening
from insgd_optax._capture_stack import Capture

X = 1 + jax.random.uniform(jax.random.key(0), (3, 6, 6, 2))


class Scale(nn.Module):
    """A user's layer type."""

    @nn.compact
    def __call__(self, x):
        return x * self.param("kernel", nn.initializers.ones, (1, 1, 1, x.shape[-1]))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(3, (3, 3))(x)
        x = nn.LayerNorm()(x)
        return nn.Dense(2)(Scale()(x))


@jax.checkpoint
def checkpointed(params, x):
    return Block().apply({"params": params}, x, mutable=["intermediates"])[1]


@jax.jit
def jitted(params, x):
    return Block().apply({"params": params}, x, mutable=["intermediates"])[1]


def scan_body(params, x):
    return params, Block().apply({"params": params}, x, mutable=["intermediates"])[1]


@jax.custom_vjp
def custom(params, x):
    y, sown = Block().apply({"params": params}, x, mutable=["intermediates"])
    return jnp.sum(y), sown


def custom_forward(params, x):
    return custom(params, x), None


custom.defvjp(custom_forward, lambda residual, g: (None, None))
REMAT_BLOCK = nn.remat(Block)
JIT_BLOCK = nn.jit(Block)


def apply(module):
    def captured(params, x):
        _, sown = module.apply({"params": params}, x, mutable=["intermediates"])
        return sown

    return captured


PROGRAMS = {
    "plain": apply(Block()),
    "nn.jit": apply(JIT_BLOCK()),
    "nn.remat": apply(REMAT_BLOCK()),
    "jax.jit": jitted,
    "jax.checkpoint": checkpointed,
    "jax.lax.scan": lambda params, x: jax.lax.scan(scan_body, params, x[None])[1],
    "jax.lax.cond": lambda params, x: jax.lax.cond(
        jnp.sum(x) > 0, jitted, jitted, params, x
    ),
    "custom_vjp": lambda params, x: custom(params, x)[1],
    "gradient": lambda params, x: jax.grad(custom, has_aux=True)(params, x)[1],
    "jax.eval_shape": lambda params, x: jax.eval_shape(jitted, params, x),
}
SETTINGS = {
    "outside": None,
    "p=2": {"p": 2},
    "p=1": {"p": 1},
    "p=inf": {"p": jnp.inf},
    "patch": {"conv_input": "patch"},
    "norm_layers": {"norm_layers": True},
    "layers": {"layers": [Scale]},
    "layers' axes": {"layers": {Scale: [-1, 1]}},
}


def flat(sown):
    return {
        jax.tree_util.keystr(path): value
        for path, value in jax.tree_util.tree_leaves_with_path(sown)
    }


def assert_same(ours, expected):
    ours, expected = flat(ours), flat(expected)
    assert sorted(map(shortened, ours)) == sorted(map(shortened, expected))
    if all(isinstance(value, jax.Array) for value in ours.values()):
        for key, value in ours.items():
            (other,) = [
                v for k, v in expected.items() if shortened(k) == shortened(key)
            ]
            np.testing.assert_allclose(np.squeeze(value), np.squeeze(other), rtol=1e-5)


def shortened(path):
    return path.replace("['intermediates']", "")


def with_settings(settings, program, *args):
    # A new outer jit each time: only the caches of the inner functions are shared.
    def captured(*args):
        if settings is None:
            return program(*args)
        with capture_input_norms(**settings):
            return program(*args)

    return captured if program is PROGRAMS["jax.eval_shape"] else jax.jit(captured)


@functools.cache
def block_params():
    return jax.jit(Block().init)(jax.random.key(1), X)["params"]


@functools.cache
def expected(setting):
    return with_settings(SETTINGS[setting], PROGRAMS["plain"])(block_params(), X)


@pytest.mark.parametrize("program", PROGRAMS)
def test_each_setting_reaches_a_cached_linen_function(program):
    for setting in [*SETTINGS, "outside", "p=2"]:
        ours = with_settings(SETTINGS[setting], PROGRAMS[program])(block_params(), X)
        assert_same(ours, expected(setting))


def test_settings_reach_a_cached_function_called_within_the_context():
    """Without an outer jit."""
    params = block_params()
    assert not flat(jitted(params, X))
    found = []
    for p in (2, 1, 2):
        with capture_input_norms(p=p):
            found.append(flat(jitted(params, X)))
    assert found[0].keys() == found[1].keys() and len(found[0]) == 2
    for key, value in found[0].items():
        assert np.all(value != found[1][key])
        np.testing.assert_array_equal(value, found[2][key])


def test_released_norms_reach_a_cached_function():
    params = nn.Dense(2).init(jax.random.key(1), X)["params"]
    apply_dense = jax.jit(
        lambda params, x: nn.Dense(2).apply(
            {"params": params}, x, mutable=["intermediates"]
        )[1]
    )
    found = []
    for p, tokens in [(2, "samples"), (1, "samples"), (2, "as_is")]:
        with capture_released_norms(p, tokens):
            found += [
                float(value.item()) for value in flat(apply_dense(params, X)).values()
            ]
    assert len(set(found)) == 3


def test_input_norm_shapes_follows_the_settings():
    model = JIT_BLOCK()
    for settings, count in [
        ({}, 2),
        ({"norm_layers": True}, 3),
        ({"layers": [Scale]}, 3),
    ]:
        with capture_input_norms(**settings):
            assert len(flat(input_norm_shapes(model, jax.random.key(0), X))) == count


def test_equal_settings_are_traced_once():
    traces = []

    @jax.jit
    def count(x):
        traces.append(x)
        return x

    for _ in range(3):
        with capture_input_norms(p=2, layers={Scale: [-1]}):
            count(1.0)
        with capture_input_norms(p=2.0, layers={Scale: (-1,)}):
            count(1.0)
    assert len(traces) == 1


def test_a_capture_without_a_key_shares_no_trace():
    """Its statistic may depend on a tracer of the function around it."""
    model, params = JIT_BLOCK(), block_params()

    @jax.jit
    def step(when):
        def take(layer, call):
            return jnp.where(when, jnp.sum(call["inputs"]), 0)

        with listening(Capture("linen", "sum", {nn.Dense: take})):
            return apply(model)(params, X)

    assert all(value == 0 for value in flat(step(False)).values())
    assert all(value != 0 for value in flat(step(True)).values())
    outer = [jax.jit(step.__wrapped__)(when) for when in (False, True)]
    assert outer[0] != outer[1]


class Dense(nn.Dense):
    """A subclass that changes the input of its kernel."""

    def __call__(self, inputs):
        return super().__call__(2 * inputs)


def test_captures_of_several_kinds_may_be_open_at_once():
    model, x = Dense(2), jnp.array([[3.0, 4.0]])
    params = model.init(jax.random.key(0), x)["params"]
    pair = Capture(
        "linen", "pair", {nn.Dense: lambda layer, call: {"x": call["inputs"], "n": 1}}
    )
    outer = capture_input_norms(p=1)
    with capture_released_norms(), outer, listening(pair), capture_input_norms(p=2):
        sown = apply(model)(params, x)["intermediates"]
    (norm,), (released,), (both,) = (
        sown[name] for name in ("input_norm", "released_input_norm", "pair")
    )
    assert norm.item() == 100 and released.shape == (1, 1)
    np.testing.assert_array_equal(both["x"], 2 * x)


class Layer(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(2, 3, (3, 3), rngs=rngs)
        self.norm = nnx.LayerNorm(3, rngs=rngs)
        self.scale = NnxScale()
        self.linear = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.linear(self.scale(self.norm(self.conv(x))))


class NnxScale(nnx.Module):
    def __init__(self):
        self.kernel = nnx.Param(jnp.ones((1, 1, 1, 3)))

    def __call__(self, x):
        return x * self.kernel[...]


@nnx.remat
def remat(layer, x):
    return layer(x)


@nnx.jit
def nnx_jit(layer, x):
    return layer(x)


@nnx.scan(in_axes=(nnx.StateAxes({nnx.Intermediate: 0, ...: None}), 0), out_axes=0)
def scan(layer, x):
    return layer(x)


NNX_SETTINGS = {key: SETTINGS[key] for key in ("outside", "p=2", "p=1", "patch")} | {
    "norm_layers": {"norm_layers": True},
    "layers": {"layers": [NnxScale]},
    "layers' axes": {"layers": {NnxScale: [-1, 1]}},
}


def nnx_captured(layer, setting, function):
    settings = NNX_SETTINGS[setting]

    def captured(layer, x):
        if settings is None:
            return nnx.capture(function, nnx.Intermediate)(layer, x)[1]
        with insgd_optax.nnx.capture_input_norms(**settings):
            return nnx.capture(function, nnx.Intermediate)(layer, x)[1]

    # Without jit, each operation would be compiled again for each setting. A new outer
    # jit each time, as in `with_settings`.
    captured = captured if function is nnx_jit else nnx.jit(captured)
    return flat(captured(layer, X[None] if function is scan else X))


@functools.cache
def nnx_expected(setting):
    return nnx_captured(Layer(), setting, lambda layer, x: layer(x))


@pytest.mark.parametrize("run", [remat, nnx_jit, scan], ids=["remat", "jit", "scan"])
def test_each_setting_reaches_a_cached_nnx_function(run):
    layer = Layer()
    for setting in [*NNX_SETTINGS, "outside", "p=2"]:
        ours, expected = nnx_captured(layer, setting, run), nnx_expected(setting)
        assert ours.keys() == expected.keys()
        for key, value in ours.items():
            np.testing.assert_allclose(
                np.squeeze(value), np.squeeze(expected[key]), rtol=1e-5
            )


def test_the_stack_of_the_docs_follows_each_setting():
    @nnx.split_rngs(splits=4)
    @nnx.vmap
    def make_layers(rngs):
        return nnx.Linear(16, 16, rngs=rngs)

    @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    def apply_layers(layer, x):
        return nnx.relu(layer(x))

    layers = make_layers(nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (8, 16))
    found = {}
    for p in (2, 1):

        @nnx.jit
        def step(layers, x, p=p):
            with insgd_optax.nnx.capture_input_norms(p=p):
                return nnx.capture(apply_layers, nnx.Intermediate)(layers, x)[1]

        (norm,) = step(layers, x)["input_norm"].get_value()
        found[p] = norm[0].item()
    for p, norm in found.items():
        expected = jnp.mean(jnp.sum(jnp.abs(x) ** p, axis=-1))
        np.testing.assert_allclose(norm, expected, rtol=1e-5)


def norm_of():
    x = jnp.array([[3.0, 4.0]])
    params = {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)}
    sown = apply(nn.Dense(1))(params, x)
    return [value.item() for value in flat(sown).values()]


def nnx_norm_of():
    layer = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    sown = nnx.capture(layer, nnx.Intermediate)(jnp.array([[3.0, 4.0]]))[1]
    return [value.item() for value in flat(sown).values()]


@pytest.mark.parametrize(
    "capture, norm",
    [
        (capture_input_norms, norm_of),
        (insgd_optax.nnx.capture_input_norms, nnx_norm_of),
    ],
    ids=["linen", "nnx"],
)
def test_interleaved_tasks_keep_their_own_settings(capture, norm):
    async def task(p, first, second):
        with capture(p=p):
            await asyncio.sleep(0)
            found = [*norm()]
            first.set()
            await second.wait()
            return [*found, *norm()]

    async def main():
        a, b, c = asyncio.Event(), asyncio.Event(), asyncio.Event()
        found = await asyncio.gather(task(2, a, b), task(1, b, c), task(jnp.inf, c, a))
        assert norm() == []
        return found

    assert asyncio.run(main()) == [[25, 25], [7, 7], [4, 4]]
    assert norm() == []


def test_a_task_that_outlives_its_context_sows_nothing():
    async def task():
        await asyncio.sleep(0)
        return norm_of()

    async def main():
        with capture_input_norms(p=1):
            started = asyncio.ensure_future(task())
        with capture_input_norms(p=2):
            return await started

    assert asyncio.run(main()) == []


def test_threads_share_neither_settings_nor_traces():
    found = {}
    barrier = threading.Barrier(2)

    def run(p):
        barrier.wait()
        with capture_input_norms(p=p):
            barrier.wait()
            found[p] = [norm_of() for _ in range(3)]
            barrier.wait()

    threads = [threading.Thread(target=run, args=(p,)) for p in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {1: [[7]] * 3, 2: [[25]] * 3}


class NnxLinear(nnx.Linear):
    """A subclass that changes the input of its kernel."""

    def __call__(self, inputs):
        return super().__call__(2 * inputs)


def test_nnx_captures_of_several_kinds_may_be_open_at_once():
    layer, x = NnxLinear(2, 1, rngs=nnx.Rngs(0)), jnp.array([[3.0, 4.0]])

    def take(layer, call):
        return {"x": call["inputs"], "n": 1}

    pair = Capture("nnx", "pair", {nnx.Linear: take})
    inner = insgd_optax.nnx.capture_input_norms(p=2)
    outer = insgd_optax.nnx.capture_input_norms(p=1)
    with outer, insgd_optax.nnx.listening(pair), inner:
        _, sown = nnx.capture(layer, nnx.Intermediate)(x)
    (norm,), (both,) = (sown[name].get_value() for name in ("input_norm", "pair"))
    assert norm.item() == 100
    np.testing.assert_array_equal(both["x"], 2 * x)
