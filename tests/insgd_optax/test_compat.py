"""Canaries: a release of Flax or Optax that changes a private part fails here first.

Each test uses one private part the way the library does. The public behavior that
depends on it has tests of its own; these name the part that moved.
"""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from flax.core import lift
from flax.core.scope import DenyList, in_filter

import insgd_optax
from insgd_optax import capture_input_norms
from insgd_optax._compat import (
    DenseParams,
    InterceptorContext,
    canonicalize_padding,
    is_confined,
    is_placeholder,
    nnx_captures,
    trace_context,
)


def test_lift_has_the_functions_that_are_replaced():
    # Not `export_sown` itself: the names of its first call hold for the whole process.
    with capture_input_norms():
        pass
    for function in (lift._split_in_out_axes, lift.pack):
        assert function.__wrapped__.__module__ == "flax.core.lift"
        assert function.__module__ == "flax.core.lift"
    assert lift._split_in_out_axes.__wrapped__({"a": 0, "b": lift.Out(1)}) == (
        {"a": 0},
        {"a": 0, "b": 1},
    )
    assert "variable_axes" in lift.scan.__code__.co_varnames
    for function in (lift.scan, lift.vmap):
        assert {"_split_in_out_axes", "pack"} <= set(function.__code__.co_names)


def test_scopes_have_collections_and_a_debug_path():
    class Seen(nn.Module):
        def __call__(self):
            self.sow("intermediates", "value", 1)
            scopes, _ = lift._dedup_scopes([self.scope, self.scope])
            assert tuple(scopes) == (self.scope,)
            assert dict(self.scope._collection("intermediates")) == {"value": (1,)}
            assert not self.scope.debug_path

    Seen().apply({}, mutable=["intermediates"])


def test_a_tracer_is_confined_to_a_trace_that_began_after_its_holder():
    class Seen(nn.Module):
        def __call__(self, x):
            for holder in (self.scope, nnx.Variable(x)):
                assert not is_confined((x, 1), holder)

                def note(y, holder=holder):
                    found.append((is_confined((y, 1), holder), is_confined(x, holder)))
                    return y

                for transformation in (jax.vmap, jax.jit, jax.checkpoint):
                    transformation(note)(x)

    found = []
    jax.jit(lambda x: Seen().apply({}, x))(jnp.ones(2))
    assert found == [(True, False)] * 6


def test_a_version_without_the_private_parts_captures_nevertheless(monkeypatch):
    state = object()  # Without `_trace_ref`.
    monkeypatch.setattr(
        jax.extend.core, "get_opaque_trace_state", lambda *_, **__: state
    )
    with capture_input_norms():
        layer, x = nn.Dense(1), jnp.ones((2, 3))
        _, variables = layer.init_with_output(jax.random.key(0), x)
        _, sown = layer.apply(variables, x, mutable=["intermediates"])
    (norm,) = sown["intermediates"]["input_norm"]
    assert norm.squeeze() == 3  # 3 inputs of 1


@pytest.mark.parametrize(
    ("filter_like", "expected"),
    [
        ("intermediates", True),
        ("params", False),
        (("params", "intermediates"), True),
        (True, True),
        (DenyList("intermediates"), False),
    ],
)
def test_in_filter_tells_whether_a_filter_matches_a_collection(filter_like, expected):
    assert in_filter(filter_like, "intermediates") is expected


def test_optimized_lstm_cells_keep_their_kernels_in_dense_params():
    kinds = set()

    def note(next_fun, args, kwargs, context):
        kinds.add(type(context.module))
        return next_fun(*args, **kwargs)

    cell = nn.OptimizedLSTMCell(3)
    x = jnp.ones((1, 2))
    with nn.intercept_methods(note):
        carry = cell.initialize_carry(jax.random.key(0), x.shape)
        variables = jax.eval_shape(cell.init, jax.random.key(0), carry, x)
    assert DenseParams in kinds and nn.Dense not in kinds
    kernels = {path[-1].key for path, _ in jax.tree.leaves_with_path(variables)}
    assert kernels == {"kernel", "bias"}


def test_map_params_initializes_with_a_placeholder():
    seen = []

    def init(params):
        seen.append(params)
        return optax.EmptyState()

    optax.tree.map_params(init, lambda leaf: leaf, optax.EmptyState())
    assert [is_placeholder(params) for params in seen] == [True]
    assert not is_placeholder({"kernel": jnp.ones(2)})


def test_nnx_capture_keeps_what_is_sown_in_captures():
    class Layer(nnx.Module):
        def __call__(self):
            before = [dict(each) for each in nnx_captures(self)]
            self.sow(nnx.Intermediate, "value", 1)
            self.sow(nnx.Intermediate, "value", 2)
            (captured,) = nnx_captures(self)
            assert type(captured) is nnx.Intermediate
            return before, "value" in captured, captured["value"]

    layer = Layer()
    (before, found, values), _ = nnx.capture(layer, nnx.Intermediate)()
    assert (before, found, values) == ([{}], True, (1, 2))
    assert nnx_captures(layer) is None


def test_calls_are_intercepted_with_their_method():
    class Layer(nn.Module):
        def __call__(self, x):
            return x

    def check(next_fun, args, kwargs, context):
        if context.method_name == "__call__":
            assert isinstance(context.module, Layer)
            assert context.orig_method(*args, **kwargs) == 3
            seen.append(context)
        return next_fun(*args, **kwargs)

    seen = []
    with nn.intercept_methods(check):
        assert Layer().apply({}, 3) == 3
    assert isinstance(seen[0], InterceptorContext)


def test_canonicalize_padding_gives_pairs_by_axis():
    canonical = canonicalize_padding
    assert canonical(1, 2) == [(1, 1), (1, 1)]
    assert canonical((1, (0, 2)), 2) == [(1, 1), (0, 2)]
    assert canonical("SAME", 2) == "SAME"


def test_a_user_context_is_part_of_the_trace_caches_keys():
    context, traced = trace_context(), []

    @jax.jit
    def function(x):
        traced.append(context.value)
        return x

    for value in (None, "a", "b", "a"):
        with context(value):
            function(1.0)
    assert traced == [None, "a", "b"]


def test_no_other_file_uses_these_private_parts():
    parts = ["_ParamsPlaceholder", "__captures__", "make_user_context"]
    parts += [
        "flax.core.scope",
        "flax.core.lift",
        "linen.recurrent",
        "linear.canonical",
    ]
    parts += ["recurrent.DenseParams", "InterceptorContext ="]
    files = Path(insgd_optax.__file__).parent.glob("*.py")
    for file in files:
        if file.name != "_compat.py":
            text = file.read_text()
            assert [part for part in parts if part in text] == [], file.name
