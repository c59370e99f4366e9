"""Modules with several scaled weights: each has its own norm, or it is an error."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from insgd_optax import (
    MultiSteps,
    capture_input_covariances,
    capture_input_norms,
    input_norm_shapes,
    input_powers,
    insgd,
    scale_by_input_covariance,
    scale_by_input_power,
    sow_input_covariance,
    sow_input_norm,
    value_and_grad_with_input_norms,
)
from insgd_optax.nnx import capture_input_norms as nnx_capture_input_norms

X = jnp.array([[3.0, 4.0]])


class MLP(nn.Module):
    """Flax's toy MLP: two weights in one module."""

    named: bool = True
    sows: bool = True

    @nn.compact
    def __call__(self, x):
        for name, shape in (("w1", (2, 3)), ("w2", (3, 1))):
            weight = self.param(name, nn.initializers.ones, shape)
            if self.sows and self.named:
                sow_input_norm(self, x, weight=name)
                sow_input_covariance(self, x, weight=name)
            elif self.sows and name == "w1":
                sow_input_norm(self, x)
                sow_input_covariance(self, x)
            x = x @ weight
        return x


def is_weight(path):
    return path[-1] in ("w1", "w2")


def pass_of(model, **capture):
    @jax.jit
    def sow(key):
        params = model.init(key, X)["params"]
        return params, model.apply({"params": params}, X, mutable=["intermediates"])[1]

    with capture_input_norms(**capture), capture_input_covariances():
        return sow(jax.random.key(0))


@pytest.mark.parametrize("wrap", [lambda tx: tx, lambda tx: MultiSteps(tx, 1)])
def test_each_named_weight_has_its_own_power(wrap):
    params, sown = pass_of(MLP())
    tx = wrap(scale_by_input_power(scope=is_weight))
    _, state = jax.jit(tx.update)(params, tx.init(params), params, input_norms=sown)
    powers = input_powers(state)
    np.testing.assert_allclose(powers["w1"], 25.0)
    np.testing.assert_allclose(powers["w2"], 3 * 49.0)


@pytest.mark.parametrize("wrap", [lambda tx: tx, lambda tx: MultiSteps(tx, 2)])
@pytest.mark.parametrize("layers", [None, [MLP]])
def test_a_norm_that_two_weights_would_share_is_an_error(wrap, layers):
    """Whether the module sows it or `layers=` does."""
    params, sown = pass_of(MLP(named=False, sows=layers is None), layers=layers)
    tx = wrap(insgd(0.1, scope=is_weight))
    with pytest.raises(
        ValueError, match=r"share one input norm(.|\n)*w1\n(.|\n)*w2"
    ) as e:
        tx.update(params, tx.init(params), params, input_norms=sown)
    assert "sow_input_norm(self, x, weight='w1')" in str(e.value)


def test_a_kernel_shares_its_norm_only_with_its_bias_and_scale():
    params = {"d": {"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)}}
    params["d"]["scale"] = jnp.ones(1)
    norms = {"d": {"input_norm": jnp.array(9.0)}}
    tx = insgd(0.1, scope="layer")
    tx.update(params, tx.init(params), params, input_norms=norms)
    params["d"]["gate"] = jnp.ones((2, 1))
    tx = insgd(0.1, scope=lambda path: True)
    with pytest.raises(ValueError, match="share one input norm"):
        tx.update(params, tx.init(params), params, input_norms=norms)


def test_named_covariances_are_kept_apart_and_shared_ones_refused():
    params, sown = pass_of(MLP())
    tx = scale_by_input_covariance(damping=1.0, preserve_norm=False, scope=is_weight)
    update = jax.jit(tx.update)
    _, state = update(params, tx.init(params), params, input_covariances=sown)
    factor = state.layers["w2"].factors[0].reshape(3, 3)
    np.testing.assert_allclose(factor / factor[0, 0], np.ones((3, 3)))
    params, sown = pass_of(MLP(named=False))
    # Weights of equal shapes, because others would not fit.
    params = {"w1": params["w1"], "w2": params["w1"]}
    with pytest.raises(ValueError, match="share one input covariance") as e:
        tx.update(params, tx.init(params), params, input_covariances=sown)
    assert "sow_input_covariance(self, x, weight='w1')" in str(e.value)


def test_value_and_grad_separates_named_norms():
    params, _ = pass_of(MLP())

    def loss_fn(params):
        y, sown = MLP().apply({"params": params}, X, mutable=["intermediates"])
        return jnp.sum(y), sown

    (_, rest), _, norms = value_and_grad_with_input_norms(loss_fn)(params)
    assert set(norms) == {"input_norm.w1", "input_norm.w2"}
    assert rest == {"intermediates": {}}
    with capture_input_norms():
        shapes = input_norm_shapes(MLP(), jax.random.key(0), X)
    assert "input_norm.w2" in shapes


def test_named_norms_of_an_earlier_pass_are_refused():
    params, sown = pass_of(MLP())
    with capture_input_norms(), pytest.raises(ValueError, match="earlier pass"):
        MLP().apply({"params": params, **sown}, X, mutable=["intermediates"])


class Square(MLP):
    """Weights that can be stacked."""

    @nn.compact
    def __call__(self, x, _=None):
        for name in ("w1", "w2"):
            sow_input_norm(self, x, weight=name)
            sow_input_covariance(self, x, weight=name)
            x = x @ self.param(name, nn.initializers.normal(), (2, 2))
        return x, None


@pytest.mark.parametrize(
    "lifted", [nn.scan, lambda *args, **kw: nn.vmap(*args, **kw, in_axes=(None, None))]
)
def test_named_statistics_of_stacked_layers_need_no_axis(lifted):
    """Like unnamed ones, whether or not `variable_axes` mentions "intermediates"."""

    def sown_by(axes):
        model = lifted(
            Square,
            variable_axes=axes,
            split_rngs={"params": True},
            **({"length": 3} if lifted is nn.scan else {"axis_size": 3}),
        )()

        @jax.jit
        def run():
            params = model.init(jax.random.key(0), X, None)["params"]
            with capture_input_norms(), capture_input_covariances():
                return model.apply({"params": params}, X, None, mutable=True)[1]

        return run()["intermediates"]

    sown, listed = sown_by({"params": 0}), sown_by({"params": 0, "intermediates": 0})
    assert sown.keys() == {
        f"input_{what}.{w}" for what in ("norm", "covariance") for w in ("w1", "w2")
    }
    jax.tree.map(np.testing.assert_array_equal, sown, dict(listed))


def test_a_module_named_like_a_norm_is_not_a_norm():
    """The values that it sows under other names are not norms of its parent."""
    params = {"kernel": jnp.ones((2, 1))}
    sown = {"input_norm": {"mean": (jnp.array(1e4),)}, "input_norm.kernel": (X[0, 0],)}
    tx = scale_by_input_power(decay=0.0)
    _, state = tx.update(params, tx.init(params), input_norms=sown)
    np.testing.assert_array_equal(input_powers(state)["kernel"], 3.0)
    with pytest.raises(ValueError, match="have no input norm"):
        tx.update(params, state, input_norms={"input_norm": sown["input_norm"]})


def test_nnx_lora_listed_in_layers_is_an_error():
    model = nnx.LoRA(2, 1, 2, rngs=nnx.Rngs(0))
    with nnx_capture_input_norms(layers=[nnx.LoRA]):
        _, norms = nnx.capture(model, nnx.Intermediate)(X)
    params = nnx.state(model, nnx.LoRAParam)
    tx = optax.with_extra_args_support(
        insgd(0.1, scope=lambda path: "lora" in path[-1])
    )
    with pytest.raises(
        ValueError, match=r"lora_a\n(.|\n)*lora_b(.|\n)*weight='lora_a'"
    ):
        tx.update(params, tx.init(params), params, input_norms=norms)


def test_nnx_weights_named_by_hand_have_their_own_powers():
    class FeedForward(nnx.Module):
        """Like Gemma's: a gate of two kernels, and the projection back."""

        def __init__(self):
            self.gate = nnx.Param(jnp.ones((2, 2, 3)))
            self.linear = nnx.Param(jnp.ones((3, 2)))

        def __call__(self, x):
            self.sow(nnx.Intermediate, "input_norm.gate", jnp.sum(x**2))
            a, b = jnp.einsum("bd,gdf->gbf", x, self.gate[...])
            self.sow(nnx.Intermediate, "input_norm.linear", jnp.sum((a * b) ** 2))
            return (a * b) @ self.linear[...]

    model = FeedForward()
    _, norms = nnx.capture(model, nnx.Intermediate)(X)
    params = nnx.state(model, nnx.Param)
    tx = insgd(0.1, scope=lambda path: True)
    _, state = tx.update(params, tx.init(params), params, input_norms=norms)
    powers = {k: float(v) for k, v in input_powers(state).items()}
    assert powers == {"gate": 25.0, "linear": 3 * 49.0**2}
