"""Private APIs of Flax, Optax and JAX, which a release may change without notice.

Each has a test that fails if the API changes: in tests/insgd_optax/test_compat.py, and
for `is_within_optax_multi_steps` in test_multi_steps.py beside it.
"""

import functools
import sys
import threading
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.extend
import optax
from flax.core import lift
from flax.core.scope import Scope, in_filter
from flax.linen import recurrent

from insgd_optax._paths import only

DenseParams = recurrent.DenseParams
InterceptorContext = nn.module.InterceptorContext
canonicalize_padding = nn.linear.canonicalize_padding

_lock = threading.Lock()


def is_placeholder(params: Any) -> bool:
    """Whether `params` is the placeholder that `optax.tree.map_params` gives to `init`.

    With it, optax finds out which parts of a state mirror the parameters.
    """
    return type(params).__name__ == "_ParamsPlaceholder"


def is_within_optax_multi_steps() -> bool:
    """Whether the caller runs inside the `init` of an `optax.MultiSteps`."""
    frame: types.FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code is optax.MultiSteps.init.__code__:
            return True
        frame = frame.f_back
    return False


def trace_context() -> Any:
    """A context whose value is a part of the key of every JAX trace cache."""
    return jax.make_user_context(None)


def nnx_captures(module: Any) -> Sequence[Any] | None:
    """The variables that `nnx.capture` collects in a module; None outside it."""
    return getattr(module, "__captures__", None)


def is_confined(value: Any, holder: Any) -> bool:
    """Whether a value must not be kept in a Linen scope or a variable of NNX.

    It must not if it is a tracer of a transformation, such as `jax.vmap`, that JAX
    began after the holder was created: the tracer is invalid once this has ended. If a
    later version lacks the private attributes used here, the answer is no; JAX then
    raises an error of its own, which does not name the layer.
    """
    try:
        state = jax.extend.core.get_opaque_trace_state()
        if isinstance(holder, Scope):
            is_outer = holder.root.trace_level != state
        else:
            is_outer = not holder._can_update
        # Within `jax.grad`, for example, a statistic does not belong to the inner
        # trace, since no gradient flows through it.
        trace = state._trace_ref()
        return is_outer and any(
            isinstance(leaf, jax.core.Tracer) and leaf._trace is trace
            for leaf in jax.tree.leaves(value)
        )
    except AttributeError:
        return False


class _Added(str):
    """A collection that the user's `variable_axes` does not mention."""


def export_sown(
    collection: str,
    names: Callable[[], Collection[str]],
    is_entry: Callable[[Any, str], bool],
) -> None:
    """Makes `nn.scan` and `nn.vmap` return values sown under some names.

    Both drop values sown into a collection that their `variable_axes` omits. After
    this call, they stack the values of these names along axis 0 instead. It permanently
    patches `flax.core.lift.pack` and `_split_in_out_axes` for all threads; both behave
    as before where `names()` is empty. Only the first call has an effect: the arguments
    of later calls are ignored.

    Args:
        collection: the collection.
        names: returns the names of the values to export, at each call of a transform.
        is_entry: whether a key of the collection belongs to a name.
    """
    with _lock:
        if hasattr(lift._split_in_out_axes, "exports_sown"):
            return
        replaced: Any = lift
        split, pack = lift._split_in_out_axes, lift.pack

        @functools.wraps(split)
        def split_in_out_axes(axes: Mapping[Any, Any]) -> tuple[Any, Any]:
            into, out = split(axes)
            if not names() or any(in_filter(key, collection) for key in axes):
                return into, out
            # A layer's norm must be stacked along the same axis as its kernel, and only
            # axis 0 can be added to every norm: a scalar has no other.
            if any(
                axes[key] not in (0, None) for key in axes if in_filter(key, "params")
            ):
                return into, out
            # Added last, since `variable_broadcast` and `variable_carry` take
            # precedence, and to the outputs only, since what the surrounding layers
            # have sown has no axis to scan over.
            return into, {**out, _Added(collection): 0}

        @functools.wraps(pack)
        def appending_pack(
            fn: Any, into: Sequence[Any], out: Sequence[Any], *args: Any, **kwargs: Any
        ) -> Any:
            if not (out and isinstance(out[-1], _Added)):
                return pack(fn, into, out, *args, **kwargs)
            if any(in_filter(each, collection) for each in out[:-1]):
                return pack(fn, into, out, *args, **kwargs)
            wanted = names()

            def is_wanted(key: Any) -> bool:
                return any(is_entry(key, name) for name in wanted)

            @functools.wraps(fn)
            def only_wanted(scope_fn: Any, repack_fn: Any, *args: Any) -> Any:
                def repack(scopes: Any) -> Any:
                    # The model's own sown values stay inside, as without the patch.
                    *others, sown = repack_fn(scopes)
                    return (*others, tuple(only(each, is_wanted) for each in sown))

                return fn(scope_fn, repack, *args)

            lifted = pack(only_wanted, into, out, *args, **kwargs)

            @functools.wraps(lifted)
            def appending(scopes: Any, *args: Any, **kwargs: Any) -> Any:
                found = lift._dedup_scopes(jax.tree.leaves(scopes))[0]
                before = [_sown(scope, collection) for scope in found]
                output = lifted(scopes, *args, **kwargs)
                for scope, earlier in zip(found, before, strict=True):
                    # The lifted call has replaced what an earlier call sowed.
                    later = _sown(scope, collection)
                    for name in earlier.keys() & later.keys():
                        both = _appended(earlier[name], later[name])
                        if both is not later[name]:
                            scope.put_variable(collection, name, both)
                return output

            return appending

        replaced.pack = appending_pack
        replaced._split_in_out_axes = split_in_out_axes
        replaced._split_in_out_axes.exports_sown = True


def _sown(scope: Scope, collection: str) -> dict[str, Any]:
    """A copy of a scope's collection: a lifted call writes into the original."""
    if not scope.is_mutable_collection(collection):
        return {}
    return _copied(scope._collection(collection))


def _copied(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {name: _copied(value) for name, value in tree.items()}
    return tree


def _appended(earlier: Any, later: Any) -> Any:
    """Merges the values of two calls by name; tuples in the order of the calls."""
    if isinstance(earlier, Mapping) and isinstance(later, Mapping):
        both = {n: _appended(earlier[n], later[n]) for n in earlier if n in later}
        return {**earlier, **later, **both}
    if later is not earlier and type(earlier) is type(later) is tuple:
        return earlier + later
    return later
