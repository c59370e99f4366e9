"""Training and evaluation, and the dtypes of activations and variables."""

import functools

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models

WITH_DROPOUT = {"custom_cnn", "mobilenet_v3_large", "mobilenet_v3_small", "vit"}
WITH_BATCH_NORM = set(models.names()) - {"vit"}
# Epsilon and, for batch normalization, momentum and axis, unless the usual ones.
NORMALIZATION = {
    "mobilenet_v3_large": {(0.001, 0.9, "batch")},
    "mobilenet_v3_small": {(0.001, 0.9, "batch")},
    "vit": {(1e-5,)},
}


def variable_shapes(model, x):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))


@pytest.mark.parametrize("name", models.names())
def test_training_and_evaluation_differ_in_dropout_and_statistics(
    name, digits, tiny, quick_jit
):
    images, _ = digits
    model, variables = tiny(name)

    @quick_jit
    def run(variables, key):
        rngs = {"dropout": key}
        logits, new = model.apply(
            variables, images, train=True, mutable=["batch_stats"], rngs=rngs
        )
        return logits, new, model.apply(variables, images, train=False)

    trained, new, evaluated = run(variables, jax.random.key(1))
    again, _, evaluated_again = run(variables, jax.random.key(2))

    # Only dropout draws random numbers, and only in training.
    assert np.array_equal(trained, again) == (name not in WITH_DROPOUT)
    np.testing.assert_array_equal(evaluated, evaluated_again)
    differs = name in WITH_DROPOUT | WITH_BATCH_NORM
    assert np.array_equal(trained, evaluated) != differs

    # Training updates every running statistic, and evaluation uses them.
    assert ("batch_stats" in new) == (name in WITH_BATCH_NORM)
    if name in WITH_BATCH_NORM:
        moved = jax.tree.map(
            lambda a, b: not np.array_equal(a, b),
            new,
            {"batch_stats": variables["batch_stats"]},
        )
        assert all(jax.tree.leaves(moved))
        *_, after = run({**variables, **new}, jax.random.key(1))
        assert not np.array_equal(after, evaluated)


@pytest.mark.parametrize("name", sorted(WITH_DROPOUT))
def test_dropout_needs_its_rng_only_in_training(name, digits):
    images, _ = digits
    model = models.tiny(name)
    variables = variable_shapes(model, images)

    def run(variables, train):
        return model.apply(variables, images, train=train, mutable=["batch_stats"])

    jax.eval_shape(functools.partial(run, train=False), variables)
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        jax.eval_shape(functools.partial(run, train=True), variables)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", models.names())
def test_activations_have_the_dtype_and_variables_are_float32(name, dtype, digits):
    images, _ = digits
    model = models.tiny(name, dtype=dtype)
    variables = variable_shapes(model, images)
    logits, new = jax.eval_shape(
        lambda variables: model.apply(
            variables,
            images,
            train=True,
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=True,
            rngs={"dropout": jax.random.key(0)},
        ),
        variables,
    )
    assert logits.dtype == jnp.float32
    kept = {"params": variables["params"], "statistics": new.get("batch_stats", {})}
    assert {w.dtype for w in jax.tree.leaves(kept)} == {jnp.dtype("float32")}
    (output,) = new["intermediates"].pop("__call__")
    assert output.dtype == jnp.float32
    computed = jax.tree.leaves(new["intermediates"])
    assert {y.dtype for y in computed} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("name", models.names())
def test_normalization_layers_have_the_documented_settings(name, digits):
    model = models.tiny(name, axis_name="batch")
    found = set()

    def look(next_fun, args, kwargs, context):
        module = context.module
        if isinstance(module, nn.BatchNorm):
            found.add((module.epsilon, module.momentum, module.axis_name))
        elif isinstance(module, nn.LayerNorm):
            found.add((module.epsilon,))
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(look):
        variable_shapes(model, digits[0])
    assert found == NORMALIZATION.get(name, {(1e-5, 0.9, "batch")})


@pytest.mark.parametrize("name", ["custom_cnn", "resnet20"])
def test_axis_name_averages_statistics_over_the_axis(name, digits, tiny, quick_jit):
    images, _ = digits
    model, variables = tiny(name)
    options = {} if name == "resnet20" else {"dropout": 0.0}

    def run(model, images):
        return model.apply(variables, images, train=True, mutable=["batch_stats"])

    shards = images.reshape(2, 8, *images.shape[1:])
    mapped = jax.vmap(
        functools.partial(run, model.clone(axis_name="batch", **options)),
        axis_name="batch",
    )
    logits, new = quick_jit(mapped)(shards)
    expected, expected_new = quick_jit(functools.partial(run, model.clone(**options)))(
        images
    )
    np.testing.assert_allclose(logits.reshape(expected.shape), expected, atol=1e-4)
    for shard in 0, 1:
        for a, b in zip(
            jax.tree.leaves(new), jax.tree.leaves(expected_new), strict=True
        ):
            np.testing.assert_allclose(a[shard], b, rtol=1e-4, atol=1e-5)
