"""Single bits of a checkpoint flipped: none may silently change what is restored."""

import collections
import gc
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.errors import UserError
from train.run.checkpoints import Checkpoints

FLIPS = 200


def tree(seed):
    """Arrays like those of a small network: kernels, a bias, a power and a step."""
    rng = np.random.default_rng(seed)
    shapes = {"conv": (3, 3, 16, 32), "dense": (128, 64), "bias": (64,), "power": ()}
    arrays = {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32)
        for name, shape in shapes.items()
    }
    return arrays | {"step": jnp.asarray(7, jnp.int32), "none": None}


def restore(path):
    """The latest checkpoint as bytes, array by array; None if damage is noticed."""
    try:
        checkpoints = Checkpoints(path)
        try:
            restored = checkpoints.restore_latest(like=tree(1))
        finally:
            checkpoints.close()
    except UserError:
        return None
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(restored.tree)]


def flip(path, rng):
    """Flips a bit of the largest file with probability 1/2, otherwise of any file."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    files = [file for file in files if file.stat().st_size]
    largest = max(files, key=lambda file: file.stat().st_size)
    file = largest if rng.random() < 0.5 else files[rng.integers(len(files))]
    content = bytearray(file.read_bytes())
    bit = int(rng.integers(8 * len(content)))
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    return f"bit {bit} of {file.relative_to(path)}"


# A failed read leaves Orbax's event loop with a callback that comes too late.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
def test_no_flipped_bit_silently_changes_what_is_restored(tmp_path, cases, report):
    saved, damaged = tmp_path / "saved", tmp_path / "damaged"
    checkpoints = Checkpoints(saved)
    checkpoints.save(7, tree(0), 0.5)
    checkpoints.close()
    whole = restore(saved)
    counts, silent = collections.Counter(), []
    for seed in range(cases(FLIPS)):
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(saved, damaged)
        where = flip(damaged / "7", np.random.default_rng(seed))
        found = restore(damaged)
        kind = "noticed" if found is None else "harmless"
        if found not in (None, whole):
            kind = "silent"
            silent.append(where)
        counts[kind] += 1
    report(f"{sum(counts.values())} flipped bits: {dict(counts)}")
    gc.collect()  # While warnings about collected objects are filtered.
    assert not silent
