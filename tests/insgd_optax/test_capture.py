"""The norms that unmodified Linen models sow, and their places in the tree."""

import threading

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from insgd_optax import (
    capture_input_norms,
    input_norm,
    input_norm_shapes,
    insgd,
    sow_input_norm,
)
from tests.insgd_optax.references.algorithm1_reference import batch_norm_to_the_p


def normal(*shape):
    return jax.random.normal(jax.random.key(1), shape)


def sow(model, x, *args, p=2, mutable=("intermediates",), **kwargs):
    """The parameters of a model, and its intermediates under a capture."""
    variables = jax.jit(lambda x: model.init(jax.random.key(0), x, *args))(x)

    @jax.jit
    def apply(variables, x):
        return model.apply(variables, x, *args, mutable=list(mutable))

    with capture_input_norms(p, **kwargs):
        _, sown = apply(variables, x)
    return variables["params"], sown.get("intermediates", {})


def power(x, p=2):
    """The reference's mean over the first axis."""
    return batch_norm_to_the_p(np.asarray(x), p)


def assert_norm(uses, expected, shape):
    (use,) = uses
    assert use.shape == shape
    assert use.dtype == jnp.float32
    np.testing.assert_allclose(
        np.ravel(use), np.ravel(expected), rtol=1e-5, err_msg=str(uses)
    )


@pytest.mark.parametrize("p", [1, 2, 3, np.inf])
def test_a_dense_layer_sows_its_mean_power(p):
    x = normal(4, 5)
    _, sown = sow(nn.Dense(3), x, p=p)
    assert_norm(sown["input_norm"], power(x, p), (1, 1))


def test_every_token_is_a_sample():
    x = normal(4, 6, 5)
    _, sown = sow(nn.Dense(3), x)
    assert_norm(sown["input_norm"], power(x.reshape(24, 5)), (1, 1))


def test_a_dense_layer_called_with_a_keyword_sows_its_mean_power():
    x = normal(4, 5)
    layer = nn.Dense(3)
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    with capture_input_norms():
        _, sown = layer.apply(variables, inputs=x, mutable=["intermediates"])
    assert_norm(sown["intermediates"]["input_norm"], power(x), (1, 1))


def test_dense_general_sows_the_power_of_the_axes_that_it_contracts():
    x = normal(4, 3, 5, 2)
    _, sown = sow(nn.DenseGeneral((7, 6), axis=(1, -1)), x)
    vectors = jnp.moveaxis(x, 2, 1).reshape(20, 6)
    assert_norm(sown["input_norm"], power(vectors), (1, 1, 1, 1))


@pytest.mark.parametrize("p", [2, np.inf])
def test_dense_general_keeps_one_number_for_each_kernel_of_a_batch(p):
    x = normal(3, 4, 5)
    params, sown = sow(nn.DenseGeneral((6,), axis=-1, batch_dims=(0,)), x, p=p)
    assert params["kernel"].shape == (3, 5, 6)
    assert_norm(sown["input_norm"], [power(row, p) for row in x], (3, 1, 1))


EINSUMS = {
    "plain": ("bi,io->bo", (4, 5), (5, 3), lambda x: [power(x)], (1, 1)),
    "spaces": ("b i, i o -> b o", (4, 5), (5, 3), lambda x: [power(x)], (1, 1)),
    "tokens": (
        "btd,dhk->bthk",
        (2, 3, 5),
        (5, 2, 4),
        lambda x: [power(x.reshape(6, 5))],
        (1, 1, 1),
    ),
    "batch axis, kernel transposed": (
        "bgi,oig->bgo",
        (4, 3, 5),
        (2, 5, 3),
        lambda x: [power(x[:, g]) for g in range(3)],
        (1, 1, 3),
    ),
    "batch axes, in another order": (
        "bhgi,ghio->bhgo",
        (4, 2, 3, 5),
        (3, 2, 5, 2),
        lambda x: [power(x[:, h, g]) for g in range(3) for h in range(2)],
        (3, 2, 1, 1),
    ),
    "batch axis, one input for all": (
        "bgi,gio->bgo",
        (4, 1, 5),
        (3, 5, 2),
        lambda x: [power(x[:, 0])],
        (1, 1, 1),
    ),
    "two contracted axes": (
        "bij,jio->bo",
        (4, 3, 5),
        (5, 3, 2),
        lambda x: [power(x)],
        (1, 1, 1),
    ),
    "ellipsis": (
        "...i,io->...o",
        (2, 3, 5),
        (5, 4),
        lambda x: [power(x.reshape(6, 5))],
        (1, 1),
    ),
    "ellipses of two lengths": (
        "...i,...io->...o",
        (4, 3, 5),
        (3, 5, 2),
        lambda x: [power(x[:, g]) for g in range(3)],
        (3, 1, 1),
    ),
    "summed before the kernel": (
        "bji,io->bo",
        (4, 3, 5),
        (5, 2),
        lambda x: [power(x.sum(axis=1))],
        (1, 1),
    ),
    "diagonal": (
        "bii,io->bo",
        (4, 5, 5),
        (5, 2),
        lambda x: [power(jnp.diagonal(x, axis1=1, axis2=2))],
        (1, 1),
    ),
}


@pytest.mark.parametrize("name", EINSUMS)
def test_einsum_sows_the_power_that_its_equation_contracts(name):
    equation, shape, kernel, expected, statistic = EINSUMS[name]
    x = normal(*shape)
    _, sown = sow(nn.Einsum(kernel, equation, use_bias=False), x)
    assert_norm(sown["input_norm"], expected(x), statistic)


def test_einsum_may_receive_its_equation_in_the_call():
    x = normal(4, 5)
    _, sown = sow(nn.Einsum((5, 3), use_bias=False), x, "bi,io->bo")
    assert_norm(sown["input_norm"], power(x), (1, 1))


CONVS = {
    "plain": nn.Conv(3, (3, 3)),
    "strided": nn.Conv(3, (3, 3), strides=2),
    "grouped": nn.Conv(4, (3, 3), feature_group_count=2),
    "dilated": nn.Conv(3, (3, 3), kernel_dilation=2),
    "transposed": nn.ConvTranspose(3, (3, 3), strides=(2, 2)),
    "local": nn.ConvLocal(3, (3, 3)),
}


@pytest.mark.parametrize("name", CONVS)
def test_the_whole_map_of_a_sample_is_the_input_of_a_convolution(name):
    x = normal(2, 6, 5, 4)
    _, sown = sow(CONVS[name], x)
    assert_norm(sown["input_norm"], power(x), (1, 1, 1, 1))


def test_convolutions_of_one_and_three_dimensions():
    x = normal(2, 6, 4)
    for layer in (
        nn.Conv(3, 3),
        nn.Conv(3, (3,)),
        nn.ConvTranspose(3, 3, strides=(2,)),
    ):
        _, sown = sow(layer, x)
        assert_norm(sown["input_norm"], power(x), (1, 1, 1))
    x = normal(2, 4, 5, 3, 2)
    _, sown = sow(nn.Conv(3, (2, 2, 2)), x)
    assert_norm(sown["input_norm"], power(x), (1,) * 5)


def test_a_convolution_with_no_or_two_batch_axes():
    x = normal(2, 3, 6, 5, 4)
    _, sown = sow(nn.Conv(3, (3, 3)), x)
    assert_norm(sown["input_norm"], power(x.reshape(6, 6, 5, 4)), (1, 1, 1, 1))
    _, sown = sow(nn.Conv(3, (3, 3)), x[0, 0])
    assert_norm(sown["input_norm"], power(x[0, :1]), (1, 1, 1, 1))


def test_attention_sows_in_each_of_its_four_layers():
    x = normal(2, 3, 8)
    layer = nn.MultiHeadDotProductAttention(num_heads=2)
    params, sown = sow(layer, x)
    assert set(sown) == set(params) == {"query", "key", "value", "out"}
    for name in ("query", "key", "value"):
        assert_norm(sown[name]["input_norm"], power(x.reshape(6, 8)), (1, 1, 1))
    assert sown["out"]["input_norm"][0].shape == (1, 1, 1)


def test_embeddings_sow_nothing():
    class Tokens(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            return nn.Dense(2)(nn.Embed(7, 3)(tokens))

    _, sown = sow(Tokens(), jnp.array([[1, 2], [3, 4]]))
    assert set(sown) == {"Dense_0"}


NORMS = {
    "batch": (nn.BatchNorm(use_running_average=False), False),
    "group": (nn.GroupNorm(2), False),
    "instance": (nn.InstanceNorm(), False),
    "layer": (nn.LayerNorm(), True),
    "rms": (nn.RMSNorm(), True),
}


@pytest.mark.parametrize("name", NORMS)
def test_normalization_layers_sow_only_on_request(name):
    layer, each_vector = NORMS[name]
    x = normal(2, 3, 5, 4)
    _, sown = sow(layer, x, mutable=("intermediates", "batch_stats"))
    assert "input_norm" not in sown
    _, sown = sow(layer, x, mutable=("intermediates", "batch_stats"), norm_layers=True)
    samples = x.reshape(-1, 4) if each_vector else x
    assert_norm(sown["input_norm"], power(samples), (1,))


def test_a_layer_norm_over_two_axes_sows_one_power_for_both():
    layer = nn.LayerNorm(reduction_axes=(-2, -1), feature_axes=(-2, -1))
    x = normal(2, 3, 4)
    _, sown = sow(layer, x, norm_layers=True)
    assert_norm(sown["input_norm"], power(x), (1, 1))


def test_setup_sequential_and_a_module_called_twice_sow():
    class Net(nn.Module):
        def setup(self):
            self.head = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(4)])
            self.shared = nn.Dense(4)

        def __call__(self, x):
            x = self.head(x)
            return self.shared(self.shared(x))

    x = normal(2, 4)
    params, sown = sow(Net(), x)
    assert set(sown) == set(params) == {"head", "shared"}
    assert_norm(sown["head"]["layers_0"]["input_norm"], power(x), (1, 1))
    assert len(sown["shared"]["input_norm"]) == 2


def test_a_subclass_sows_once_from_the_input_of_its_kernel():
    class Scaled(nn.Dense):
        @nn.compact
        def __call__(self, x):
            return super().__call__(10 * x)

    class Deeper(Scaled):
        @nn.compact
        def __call__(self, x):
            return super().__call__(x)

    class Own(nn.Dense):
        @nn.compact
        def __call__(self, x):
            return x @ self.param("kernel", nn.initializers.ones, (x.shape[-1], 2))

    x = normal(2, 4)
    for layer in (Scaled(3), Deeper(3)):
        _, sown = sow(layer, x)
        assert_norm(sown["input_norm"], 100 * power(x), (1, 1))
    _, sown = sow(Own(2), x)
    assert_norm(sown["input_norm"], power(x), (1, 1))


def test_a_layer_within_a_layer_sows_for_itself():
    class LowRank(nn.Dense):
        @nn.compact
        def __call__(self, x):
            down = nn.Dense(1)(x)
            return super().__call__(x) + nn.Dense(self.features)(down)

    x = normal(2, 4)
    _, sown = sow(LowRank(3), x)
    assert_norm(sown["input_norm"], power(x), (1, 1))
    assert_norm(sown["Dense_0"]["input_norm"], power(x), (1, 1))
    assert set(sown) == {"input_norm", "Dense_0", "Dense_1"}


def test_a_model_applied_within_a_layer_does_not_sow_for_it():
    class Taught(nn.Module):
        @nn.compact
        def __call__(self, x):
            teacher = nn.Dense(2)
            teacher.apply(teacher.init(jax.random.key(0), x), x)
            return x @ self.param("kernel", nn.initializers.ones, (4, 2))

    x = normal(2, 4)
    _, sown = sow(Taught(), x, layers=[Taught])
    assert_norm(sown["input_norm"], power(x), ())


def test_the_inner_context_wins():
    x = normal(2, 4)
    layer = nn.Dense(3)
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    with capture_input_norms(1):
        with capture_input_norms(2):
            _, inner = layer.apply(variables, x, mutable=["intermediates"])
        _, outer = layer.apply(variables, x, mutable=["intermediates"])
    _, outside = layer.apply(variables, x, mutable=["intermediates"])
    assert_norm(inner["intermediates"]["input_norm"], power(x, 2), (1, 1))
    assert_norm(outer["intermediates"]["input_norm"], power(x, 1), (1, 1))
    assert not jax.tree.leaves(outside)


def test_the_context_closes_after_an_error():
    x = normal(2, 4)
    layer = nn.Dense(3)
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    with pytest.raises(Exception, match="shape"), capture_input_norms():
        layer.apply(variables, normal(2, 5), mutable=["intermediates"])
    with capture_input_norms():
        _, sown = layer.apply(variables, x, mutable=["intermediates"])
    assert_norm(sown["intermediates"]["input_norm"], power(x), (1, 1))


def test_threads_do_not_see_each_other_s_contexts():
    x = normal(2, 4)
    layer = nn.Dense(3)
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    seen = []

    def other():
        seen.append(layer.apply(variables, x, mutable=["intermediates"])[1])

    with capture_input_norms():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(seen) == 1
    assert not jax.tree.leaves(seen)


def test_other_methods_sow_nothing():
    class Tied(nn.Module):
        def setup(self):
            self.dense = nn.Dense(3)

        def __call__(self, x):
            return self.dense(x)

        def norm_of_kernel(self, x):
            return x

    x = normal(2, 4)
    model = Tied()
    variables = jax.jit(model.init)(jax.random.key(0), x)
    with capture_input_norms():
        _, sown = model.apply(
            variables, x, method="norm_of_kernel", mutable=["intermediates"]
        )
    assert not jax.tree.leaves(sown)


def test_a_custom_layer_type_sows_if_listed():
    class Bilinear(nn.Module):
        @nn.compact
        def __call__(self, x):
            kernel = self.param("kernel", nn.initializers.ones, x.shape[1:])
            return jnp.einsum("bij,ij->b", x, kernel)

    x = normal(2, 3, 4)
    _, sown = sow(Bilinear(), x)
    assert sown == {}
    _, sown = sow(Bilinear(), x, layers=[Bilinear])
    assert_norm(sown["input_norm"], power(x.reshape(6, 4)), ())
    _, sown = sow(Bilinear(), x, layers={Bilinear: (-2, -1)})
    assert_norm(sown["input_norm"], power(x), ())
    with pytest.raises(TypeError, match="not a subclass of flax.linen.Module"):
        sow(Bilinear(), x, layers=["Bilinear"])
    with pytest.raises(TypeError, match=r"one class: give layers=\[Bilinear\]"):
        sow(Bilinear(), x, layers=Bilinear)


class HandWritten(nn.Module):
    p: float | None = None

    @nn.compact
    def __call__(self, x):
        sow_input_norm(self, x, self.p)
        return x @ self.param("kernel", nn.initializers.ones, (x.shape[-1], 2))


def test_a_hand_written_layer_follows_the_capture_around_it():
    x = normal(2, 4)
    _, sown = sow(HandWritten(), x, p=1)
    assert_norm(sown["input_norm"], power(x, 1), ())
    _, sown = sow(HandWritten(p=3), x, p=1)
    assert_norm(sown["input_norm"], power(x, 3), ())
    variables = jax.jit(HandWritten().init)(jax.random.key(0), x)
    _, sown = HandWritten().apply(variables, x, mutable=["intermediates"])
    assert_norm(sown["intermediates"]["input_norm"], power(x, 2), ())


def test_init_sows_nothing():
    with capture_input_norms():
        variables = nn.Dense(3).init(jax.random.key(0), normal(2, 4))
    assert set(variables) == {"params"}


def test_a_layer_with_boxed_parameters_sows():
    init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    x = normal(2, 4)
    _, sown = sow(nn.Dense(3, kernel_init=init), x)
    assert_norm(sown["input_norm"], power(x), (1, 1))


def test_input_norm_shapes_takes_shape_structs():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            self.sow("intermediates", "other", x)
            x = nn.Conv(3, (3, 3))(x)
            return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(x))

    image = jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float32)
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    with capture_input_norms():
        shapes = input_norm_shapes(Net(), rngs, image, train=True)
    assert shapes["Conv_0"]["input_norm"][0].shape == (1, 1, 1, 1)
    assert shapes["Dense_0"]["input_norm"][0].shape == (1, 1)
    with capture_input_norms():
        assert input_norm_shapes(Net(), rngs, image, True) == shapes
        assert input_norm_shapes(Net(), rngs, train=False, x=image) == shapes
    with pytest.raises(ValueError, match="Net sows no input norm.*capture_input_norms"):
        input_norm_shapes(Net(), rngs, image, train=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"p": 0.5}, "p=0.5 names no norm"),
        ({"conv_input": "map"}, "conv_input='map' is not known.*feature_map.*patch"),
    ],
)
def test_unknown_options_are_errors(options, words):
    with pytest.raises(ValueError, match=words), capture_input_norms(**options):
        pass


def test_capture_changes_neither_loss_nor_gradients():
    """To 1e-6 of each array's largest entry, for a model of many layer types."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(4, (3, 3))(x))
            x = nn.BatchNorm(use_running_average=False)(x)
            x = nn.ConvTranspose(4, (2, 2))(x)
            x = nn.ConvLocal(2, (2, 2))(x)
            x = x.reshape(x.shape[0], -1, 8)
            x = nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
            x = nn.RNN(nn.OptimizedLSTMCell(4))(x)
            return nn.Einsum((4, 3), "btd,do->bto")(x)

    x = normal(4, 6, 6, 3)
    variables = jax.jit(Net().init)(jax.random.key(0), x)

    def loss_fn(params, p):
        rest = {**variables, "params": params}
        mutable = ["intermediates", "batch_stats"]
        if p is None:
            y, _ = Net().apply(rest, x, mutable=mutable)
        else:
            with capture_input_norms(p, norm_layers=True, conv_input="patch"):
                y, _ = Net().apply(rest, x, mutable=mutable)
        return jnp.mean(y**2)

    value_and_grad = jax.jit(jax.value_and_grad(loss_fn), static_argnums=1)
    plain, plain_grads = value_and_grad(variables["params"], None)
    for p in (1, 2, np.inf):
        loss, grads = value_and_grad(variables["params"], p)
        np.testing.assert_allclose(loss, plain, rtol=1e-6)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, 0, 1e-6 * np.abs(b).max()),
            grads,
            plain_grads,
        )


def test_the_norm_of_a_bfloat16_model_is_float32():
    x = normal(4, 5).astype(jnp.bfloat16)
    _, sown = sow(nn.Dense(3, dtype=jnp.bfloat16), x)
    assert_norm(sown["input_norm"], input_norm(x), (1, 1))


def test_insgd_halves_the_loss_of_an_unmodified_model():
    """Ten steps, as in the README."""
    model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(1)])
    x = 3 * normal(16, 4)
    y = jnp.sum(x, axis=1, keepdims=True)
    params = jax.jit(model.init)(jax.random.key(0), x)["params"]
    tx = insgd(0.05)
    opt_state = tx.init(params)

    @jax.jit
    def step(params, opt_state):
        def loss_fn(params):
            with capture_input_norms():
                z, sown = model.apply({"params": params}, x, mutable=["intermediates"])
            return jnp.mean((z - y) ** 2), sown["intermediates"]

        (loss, norms), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params, input_norms=norms)
        return jax.tree.map(jnp.add, params, updates), opt_state, loss

    losses = []
    for _ in range(10):
        params, opt_state, loss = step(params, opt_state)
        losses.append(loss)
    assert losses[-1] < 0.5 * losses[0]
