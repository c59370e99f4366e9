"""Small defects, put into the code one at a time: each must be caught by a test.

`python -m tests.faults.mutants [TEXT ...]` makes each change in a copy of the checkout
and runs the tests named with it there, until one fails. With TEXT, only mutants whose
file or change contains it. Prints those that survive, and ends with status 1 if any
does. All of them take about an hour on two cores.

These changes look like defects, but no input distinguishes them from the original:

- `checksums.of_contents` without the names, shapes and dtypes of the arrays: they are
  also hashed into "structure", which it covers, and which `restore` compares.
- `Checkpoints.set_aside` without `del`: the accuracy of a deleted step is never read,
  and `save` replaces it.
- `MultiSteps` that hands the inner optimizer the covariances of every micro-batch:
  optax drops the inner state of all but the last. It only inverts k times as often.
"""

import collections
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
_MOST_SECONDS = 600

# For each file, its mutants: the text, the replacement of its first occurrence, and
# test files in the folder of tests/ that mirrors the file's, with pytest's -k.
MUTANTS = {
    "insgd_optax/_norms": [
        ("bits >= jnp.finfo(other).bits", "bits >= 0", "input_power -k narrow"),
        ("not p >= 1", "not p > 1", "norms"),
        ("isinstance(p, bool) or not", "not", "norms"),
        ("bits == 64", "bits == 32", "norms"),
        ("jnp.square(magnitude)", "magnitude", "norms"),
        ("return magnitude**p", "return magnitude", "norms"),
        ("jax.lax.stop_gradient(jnp.asarray(x))", "jnp.asarray(x)", "norms"),
        (" and a not in keep_axes", "", "capture -k dense_general"),
        ("jnp.max(powers", "jnp.min(powers", "norms"),
        ("(*rest, *sum_axes)) / count", "(*rest, *sum_axes))", "norms"),
        ("if not -x.ndim <= a < x.ndim", "if not -x.ndim <= a <= x.ndim", "norms"),
        ("x.ndim - num_spatial - 1", "x.ndim - num_spatial", "capture -k convolution"),
        ("sorted(a % x.ndim for a in batch_axes)", "[]", "capture -k dense_general"),
        (" and size[c] == x.shape[a]\n", "\n", "capture -k einsum"),
        ("if sorted(kept) != sorted(term):", "if False:", "capture -k einsum"),
        ("power.transpose(order)", "power", "capture -k einsum"),
        ("range(-hidden, 0)", "range(hidden)", "capture -k einsum"),
        ("c in size and c not in output_labels else", "False else", "norms"),
    ],
    "insgd_optax/_matching": [
        ("max(map(len, choices))", "min(map(len, choices))", "matching"),
        ("if len(best) > 1:", "if len(best) > 2:", "matching"),
        ("if excess < 0:", "if excess < -1:", "matching"),
        ("if statistic[a] > 1)", "if statistic[a] > 0)", "matching"),
        ("n in (1, m)", "n == m", "matching"),
        (
            "statistic + (1,) * (rank - len(statistic))",
            "(1,) * (rank - len(statistic)) + statistic",
            "matching",
        ),
        ("any(n != 1 for n in statistic[len(weight) :]) or", "", "matching"),
        ("shape if any(n > 1 for n in shape) else ()", "shape", "matching"),
        ("values) / len(values)", "values)", "transforms -k twice"),
        ('not in ("bias", "scale")', 'not in ("bias",)', "named_weights"),
        ("if len(paths) > 1 for", "if len(paths) > 2 for", "named_weights"),
        ('in ("scale", "kernel"):', 'in ("kernel",):', "matching"),
        ("bare = layer[:i] + layer[i + 1 :]", "bare = layer", "trees_of_models"),
        ('if "params" in layer:', "if False:", "trees_of_models"),
        ("while end and (", "while False and (", "input_power -k tree"),
        ("if not weight:", "if False:", "input_power -k name"),
        ("!= shape:", "< shape:", "matching"),
    ],
    "insgd_optax/_input_power": [
        ("(1 - decay) * norm", "norm", "input_power"),
        ("jnp.where(power > 0, average, norm)", "average", "input_power"),
        ("jnp.where(jnp.isfinite(norm), average, power)", "average", "input_power"),
        ("jnp.maximum(jnp.log(power), eps)", "jnp.log(power)", "input_power"),
        ("1 + jnp.log1p(power)", "jnp.log1p(power)", "input_power algorithm1"),
        ("lambda power: power + eps", "lambda power: power", "input_power algorithm1"),
        (
            "jnp.maximum(next_power(power, norm, decay), least)",
            "next_power(power, norm, decay)",
            "input_power -k died",
        ),
        ("eps > 0:", "eps >= 0:", "input_power -k range"),
        ("1 / divisor(power)", "divisor(power)", "input_power"),
        ("if absent and missing", "if False and missing", "input_power"),
        ("check_not_shared(sown, scaled)", "pass", "named_weights"),
        ("optax.safe_increment(state.count)", "state.count", "input_power"),
        (
            "statistic_dtype(scaled[path].dtype)",
            '"float32"',
            "input_power -k float64",
        ),
        ("check_fraction(decay=decay)", "pass", "input_power -k range"),
        (
            "value, jnp.ones_like(power)).astype",
            "value, value).astype",
            "input_power -k zeros",
        ),
        (
            "function(jnp.where(known, power, jnp.ones_like(power)))",
            "function(power)",
            "input_power -k nan",
        ),
    ],
    "insgd_optax/_covariance": [
        (
            "len(inputs) > 2 and size > max_dim",
            "len(inputs) > 2",
            "layer_covariances -k conv-valid",
        ),
        (
            "max(max_dim // rest, 2)",
            "max(max_dim // rest, 1)",
            "covariance_forms -k blocks_of_one_vector",
        ),
        (
            "precision=jax.lax.Precision.HIGHEST",
            "precision=None",
            "input_covariance -k precision",
        ),
        (
            "preferred_element_type=dtype",
            "preferred_element_type=None",
            "input_covariance -k bfloat16",
        ),
        (
            "return (x - x).sum(",
            "return (x != x).sum(",
            "input_covariance -k finite",
        ),
        (
            "jnp.where(good, count, jnp.zeros_like(count))",
            "count",
            "input_covariance -k finite",
        ),
        (
            "math.prod(x.shape[a] for a in rows)",
            "x.shape[rows[0]]",
            "layer_covariances -k tokens",
        ),
    ],
    "insgd_optax/_layer_covariances": [
        (
            "order = [*batch, *sorted(a % x.ndim for a in axis)]",
            "order = [*batch, *(a % x.ndim for a in axis)]",
            "layer_covariances -k general",
        ),
        (
            "jnp.flip(fields, axis=range(rank + 1, 2 * rank + 1))",
            "fields",
            "layer_covariances -k transposed",
        ),
        (
            "rank + 1 if layer.transpose_kernel else rank",
            "rank",
            "layer_covariances -k transposed",
        ),
        (
            "[rank] if groups == 1 else [rank + 1, rank]",
            "[rank] if groups == 1 else [rank, rank + 1]",
            "layer_covariances -k grouped",
        ),
        ("jnp.moveaxis(fields, -1, rank + 1)", "fields", "layer_covariances -k local"),
        ('"kronecker" and taps > 1', '"kronecker"', "input_covariance -k kronecker"),
        (
            "jax.lax.stop_gradient(jnp.asarray(x))",
            "jnp.asarray(x)",
            "input_covariance -k cut_off",
        ),
    ],
    "insgd_optax/_covariance_form": [
        ("stacked > lead", "stacked > lead + 1", "covariance_forms -k refused"),
        (
            "all(f.blocks[i] == 1 for f in factors)",
            "True",
            "covariance_forms -k refused",
        ),
        ("weight[-len(bias) :] == bias", "True", "covariance_forms -k other_axes"),
        ("[..., :n, :]", "[..., :n, :] * 1.5", "covariance_forms -k diagonal"),
    ],
    "insgd_optax/_covariance_state": [
        (
            "_where(captured, matrices,",
            "_where(captured | True, matrices,",
            "refinement -k without",
        ),
        (
            "decay * layer.mass + (1 - decay)",
            "decay * layer.mass",
            "input_covariance -k reference",
        ),
        (
            "_where(captured[path] & good, *pair)",
            "_where(captured[path], *pair)",
            "input_covariance -k singular",
        ),
        ("new / leading(rows, new.ndim)", "new", "input_covariance -k reference"),
        ("lengths[::-1]", "lengths", "covariance_forms -k initial"),
        (
            "jnp.sum(captured[path] & ~good)",
            "jnp.sum(~good)",
            "input_covariance -k counted_once",
        ),
        ("sum(parts[1:], parts[0])", "parts[-1]", "input_covariance -k micro"),
    ],
    "insgd_optax/_redirection": [
        (
            "return x / largest, largest",
            "return x, jnp.ones_like(largest)",
            "input_covariance -k tiny",
        ),
        (
            "(ratio if preserve_norm else stretch)",
            "ratio",
            "input_covariance -k reference",
        ),
        ("jax.lax.stop_gradient", "", "redirection -k differentiable"),
        ("zip(updates, cosines", "zip(updates[::-1], cosines", "redirection"),
        ("(form, *(x.dtype", "(form.kernel, *(x.dtype", "redirection -k groups"),
    ],
    "insgd_optax/_whitening": [
        (
            "inverse * leading(covariance.unit, inverse.ndim)",
            "inverse",
            "refinement -k guess",
        ),
        ("if 1 < b < n:", "if False:", "covariance_forms -k blocks"),
        ("damping + eps / scale", "damping + eps", "layer_covariances -k dense"),
        ("jnp.maximum(values, 0)", "values", "input_covariance -k kronecker"),
        ("jnp.where(known, 1 + shift, shift)", "1 + shift", "input_covariance -k dead"),
        ("known = scale > 0", "known = scale >= 0", "input_covariance -k dead"),
    ],
    "insgd_optax/_nnx_layer_types": [
        (
            'equation = call.get("einsum_str") or layer.einsum_str',
            "equation = layer.einsum_str",
            "nnx_covariance -k equation",
        ),
    ],
    "train/training/step": [
        ("0 if captures else 1", "0", "compiled -k no_step_decides"),
        ("if captures is False else", "if False else", "step -k zeros"),
    ],
    "train/training/chunk": [
        ("step % period == 0", "step % period == 1", "chunk"),
        ("min(-step % period, num_steps)", "-step % period", "chunk"),
        ("(False, period - 1)", "(False, period)", "chunk"),
        ("if after > 1:", "if after > 2:", "chunk"),
        ("if not pattern.repeats:", "if True:", "chunk"),
    ],
    "train/training/streamed": [
        (
            "captures(self._stream_step, ",
            "captures(self._stream_step + 1, ",
            "streamed -k steps_that_capture",
        ),
    ],
    "insgd_optax/_inverse": [
        ("jax.lax.rsqrt(pivot)", "jax.lax.rsqrt(abs(pivot))", "inverse"),
        ("below = -product(", "below = product(", "inverse"),
        ("index < k,", "index != k,", "inverse"),
        (
            "return result + product(residual, factor.inverse.T)",
            "return result",
            "inverse -k few_rows",
        ),
        (
            "most_entries=_MOST_ENTRIES",
            "most_entries=math.inf",
            "inverse -k one_by_one",
        ),
        (
            "jax.lax.map(lambda one: function(*one), batches)",
            "jax.vmap(function)(*batches)",
            "inverse -k one_by_one",
        ),
        ("x[rows].reshape", "x[: len(x[rows])].reshape", "inverse -k group"),
        ("~jnp.stack(near)", "jnp.stack(near)", "refinement -k far"),
        ("stack(near).all()", "stack(near).any()", "refinement -k far"),
        ("[across.T, _gram(rest)]", "[across.T, rest]", "inverse"),
        (
            "jnp.where(error[:, None, None] > _CONVERGED, scale, 1)",
            "scale",
            "inverse -k nearly",
        ),
        ("least * (3 - least**2) / 2", "least", "inverse -k halves"),
        (
            "zip(members, stacks, ends",
            "zip(members[::-1], stacks, ends",
            "inverse -k group",
        ),
    ],
    "insgd_optax/_refinement": [
        (
            """identity - product(inverse, matrices)
        inverse += product(residual, inverse)""",
            """identity - product(matrices, inverse)
        inverse += product(inverse, residual)""",
            "refinement -k accurate",
        ),
        (
            "return inverse, jnp.sqrt",
            "return (inverse + inverse.mT) / 2, jnp.sqrt",
            "refinement -k accurate",
        ),
        ("jnp.sqrt(jnp.sum", "(jnp.sum", "refinement -k near"),
        ("eps) ** 0.5", "eps) ** 0.25", "refinement -k negligible"),
    ],
    "insgd_optax/_grouping": [
        ("total + size > most", "size > most", "inverse -k limited"),
        ("total + size > most", "total > most", "redirection -k limited"),
    ],
    "insgd_optax/_covariance_link": [
        (
            "check_not_negative(damping=damping, eps=eps)",
            "pass",
            "input_covariance -k range",
        ),
        (
            "_matching.check_not_shared(",
            "(lambda *_: None)(",
            "named_weights -k covariances",
        ),
        (
            "failures=state.failures + failed",
            "failures=failed",
            "input_covariance -k counted_once",
        ),
        (
            'if absent and missing == "error":',
            "if absent:",
            "input_covariance -k errors",
        ),
        (
            "& ((bits >> 31) <= 0)",
            "& ((bits >> 31) < 0)",
            "input_covariance -k reference",
        ),
    ],
    "insgd_optax/_polyak": [
        (
            "jnp.maximum(state.peak, jnp.asarray(rate, state.peak.dtype))",
            "jnp.asarray(rate, state.peak.dtype)",
            "polyak -k numpy",
        ),
        ("state.count == 0, 1.0, dampened", "state.count < 0, 1.0, dampened", "polyak"),
        ("(momentum if nesterov else 1.0)", "1.0", "polyak -k numpy"),
        (
            "jnp.where(wanted > allowed,",
            "jnp.where(wanted >= allowed,",
            "polyak -k zero",
        ),
        (
            "jnp.maximum(value - jnp.asarray(lower_bound, value.dtype), 0)",
            "(value - jnp.asarray(lower_bound, value.dtype))",
            "polyak",
        ),
        (
            "steepness, slope.astype(value.dtype)",
            "steepness, steepness",
            "polyak -k mean",
        ),
        ("finite &= jnp.isfinite(steepness)", "pass", "polyak"),
        ("jnp.where(finite, grad, 0)", "grad", "polyak -k bad_loss"),
        (
            "jnp.where(finite, scaled_by(scale, update), 0)",
            "scaled_by(scale, update)",
            "polyak",
        ),
        ("state.count == 1) &", "state.count == 0) &", "polyak -k spike"),
        ("jnp.minimum(slope, most)", "slope", "polyak -k spike"),
        ("if jnp.iscomplexobj(grad) else", "if False else", "polyak -k complex"),
        ("1.0 - momentum) / passed", "1.0 + momentum) / passed", "polyak -k numpy"),
        (
            "wide = statistic_dtype(grad.dtype)",
            "wide = grad.dtype",
            "polyak -k bfloat16",
        ),
    ],
    "insgd_optax/_multi_steps": [
        (
            "good = jnp.isfinite(norm)",
            "good = jnp.ones_like(norm, bool)",
            "training -k finite",
        ),
        ("total / count", "total", "training -k micro"),
        (
            "power.ndim > known.ndim",
            "power.ndim < known.ndim",
            "multi_steps -k axes",
        ),
        ("jnp.where(has_ended, 0, x)", "x", "multi_steps -k overflow"),
        ("jnp.where(has_ended, x, 0)", "x", "multi_steps -k overflows"),
        (
            "state.mini_step == k - 1",
            "state.mini_step == k",
            "multi_steps -k covariances",
        ),
        ("max(dtypes, key=str", "min(dtypes, key=str", "multi_steps -k widest"),
        ("batch = checked(total(", "batch = (total(", "multi_steps -k left_out"),
    ],
    "train/run/checkpoints": [
        (
            "if checksums.of_contents(tree, beside) != expected:",
            "if False:",
            "checkpoints -k flipped",
        ),
        (
            'if beside["structure"] != checksums.of_structure(like):',
            "if False:",
            "checkpoints -k another",
        ),
        (" or found.keys() != _BESIDE", "", "checkpoints -k damaged_metadata"),
        (
            "for step in steps[steps.index(restored.step) + 1 :]:",
            "for step in []:",
            "checkpoints -k hides",
        ),
    ],
    "train/run/record": [
        (
            "_CHECKSUM, checksum) != checksum",
            "_CHECKSUM, 0) == 1",
            "run_folder -k silent",
        ),
        ("len(values) != shape[-1]", "not values", "run_folder -k impossible"),
    ],
    "train/run/checksums": [
        (
            "digest.update(np.ascontiguousarray(leaf).tobytes())",
            "pass",
            "checkpoints -k flipped",
        ),
        (
            "json.dumps(beside, sort_keys=True).encode()",
            'b""',
            "checkpoints -k other_metrics",
        ),
    ],
    "train/run/metrics": [
        (
            'row["step"] <= step',
            'row["step"] < step',
            "metrics damaged_runs -k earlier or copy",
        ),
        ("or _line(written) != _line(row)", "", "damaged_runs -k metrics"),
        (
            "copy is None or to_json(rows) == list(copy[:epochs])",
            "True",
            "damaged_runs -k repaired",
        ),
        (
            "            break",
            "            continue",
            "metrics -k after_a_damaged",
        ),
        ('row["epoch"] >= 1 and row["step"] >= 1', "True", "metrics -k damaged"),
        (
            "for number in damaged if number > end",
            "for number in damaged if number >= end",
            "metrics -k one_warning",
        ),
    ],
    "train/json_fields": [
        ("return type(value) is int", "return isinstance(value, int)", "metrics"),
    ],
    "train/run/lock": [
        (" or not os.path.samestat(mine, there)", "", "run_lock -k replaced"),
    ],
    "train/files": [
        (" | os.O_NOFOLLOW", "", "run_lock -k link"),
    ],
}


def run(checkout: Path, tests: str, folder: str) -> bool:
    """Runs tests of a folder; returns whether all of them pass."""
    names, _, words = tests.partition(" -k ")
    files = [f"tests/{folder}/test_{name}.py" for name in names.split()]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", *files]
    if words:
        command += ["-k", words]
    try:
        result = subprocess.run(
            command,
            cwd=checkout,
            capture_output=True,
            check=False,
            timeout=_MOST_SECONDS,
        )
    except subprocess.TimeoutExpired:  # For example, a mutant that waits forever.
        return False
    if result.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(command)}:\n{result.stdout.decode()}")
    return result.returncode == 0


def main(*texts: str) -> int:
    """Tests the mutants that contain all of the texts."""
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder) / "checkout"
        ignored = shutil.ignore_patterns(".git", "__pycache__", "docs", "runs")
        shutil.copytree(ROOT, checkout, ignore=ignored)
        for name, changes in MUTANTS.items():
            path = checkout / f"{name}.py"
            whole = path.read_text()
            for before, after, tests in changes:
                change = f"{name}: {before!r} -> {after!r}"
                if not all(text in change for text in texts):
                    continue
                if before not in whole:
                    raise SystemExit(f"The text is not there any more: {change}")
                start = time.monotonic()
                path.write_text(whole.replace(before, after, 1))
                outcome = (
                    "survived"
                    if run(checkout, tests, Path(name).parts[0])
                    else "killed"
                )
                path.write_text(whole)
                counts[outcome] += 1
                seconds = round(time.monotonic() - start)
                print(f"{outcome} {change} ({tests}, {seconds} s)", flush=True)
    print(f"{sum(counts.values())} mutants: {dict(counts)}")
    return 1 if counts["survived"] else 0


if __name__ == "__main__":
    # As in a shell: no test of the copy may import the checkout.
    os.environ.pop("PYTHONPATH", None)
    sys.exit(main(*sys.argv[1:]))
