"""Checkpoints: which are kept, how they are restored, and damage."""

import os
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import models
from train.errors import UserError
from train.run.checkpoints import Checkpoints, latest_rows
from train.training import optimizers
from train.training.state import LoopState, abstract_state
from train.training.step import zero_metric_sums


@pytest.fixture
def checkpoints(tmp_path):
    opened = Checkpoints(tmp_path / "checkpoints")
    yield opened
    opened.close()


def steps(tmp_path):
    return sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())


def tree(value):
    return {"a": jnp.full((2, 3), value), "none": None, "empty": {}}


def test_the_latest_two_and_the_best_are_kept(tmp_path, checkpoints):
    for step, top1 in enumerate([0.5, 0.9, 0.6, 0.7, 0.2], start=1):
        checkpoints.save(step, tree(step), top1)
    assert steps(tmp_path) == [2, 4, 5]
    assert checkpoints.best_step == 2
    assert checkpoints.latest_step == 5


def test_a_save_without_accuracy_is_never_the_best(tmp_path, checkpoints):
    checkpoints.save(1, tree(1), 0.1)
    for step in (2, 3, 4):
        checkpoints.save(step, tree(step), None)
    assert steps(tmp_path) == [1, 3, 4]
    assert checkpoints.best_step == 1


def test_a_step_that_is_already_saved_is_not_overwritten(checkpoints):
    checkpoints.save(1, tree(1), 0.1)
    checkpoints.save(1, tree(2), None)
    assert checkpoints.restore_latest(tree(0)).tree["a"][0, 0] == 1
    assert checkpoints.best_step == 1


def test_a_copy_under_another_step_is_damaged(tmp_path, checkpoints):
    checkpoints.save(3, tree(3), 0.9)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "3", folder / "5")
    again = Checkpoints(folder, lambda found: int(found["a"][0, 0]))
    restored = again.restore_latest(like=tree(0))
    again.close()
    assert restored.step == 3
    assert list(restored.damaged) == [5]
    assert "it is the checkpoint of step 3, renamed or copied" in restored.damaged[5]


def test_an_empty_folder_has_no_latest_or_best_step(checkpoints):
    assert checkpoints.latest_step is None
    assert checkpoints.best_step is None


def progress(batch_norm=True, name="insgd-l2"):
    tx = optimizers.create(
        name,
        optax.constant_schedule(0.1),
        optimizers.OptimizerConfig(),
    ).tx
    model = models.create("custom_cnn", batch_norm=batch_norm)
    # Zeros, because drawing parameters compiles for seconds.
    state = jax.tree.map(
        lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype)),
        abstract_state(model, tx, (8, 8, 1)),
    )
    return LoopState(state, zero_metric_sums())


def test_a_train_state_is_restored_bit_for_bit(checkpoints):
    # Values with all bits in use, different in each array.
    rng = np.random.default_rng(0)
    saved = jax.tree.map(
        lambda w: jnp.asarray(rng.normal(size=w.shape) * 1e6, w.dtype), progress()
    )
    checkpoints.save(3, saved, 0.5)

    restored = checkpoints.restore_latest(like=progress()).tree

    assert jax.tree.structure(restored.state.params) == jax.tree.structure(
        saved.state.params
    )
    for got, expected in zip(
        jax.tree.leaves(restored), jax.tree.leaves(saved), strict=True
    ):
        assert isinstance(got, jax.Array)
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)


def test_a_loop_state_is_saved_under_the_keys_of_earlier_versions(checkpoints):
    state = {"step": jnp.zeros(())}
    saved = LoopState(state, {"loss": jnp.ones(())})
    checkpoints.save(3, saved.to_checkpoint(), None)

    like = {"state": {"step": jnp.zeros(())}, "totals": {"loss": jnp.zeros(())}}
    assert checkpoints.restore_latest(like=like).tree["totals"]["loss"] == 1


@pytest.mark.parametrize("other", [{"batch_norm": False}, {"name": "sgd"}])
def test_a_checkpoint_of_another_configuration_is_an_error(checkpoints, other):
    checkpoints.save(3, progress(), 0.5)
    with pytest.raises(UserError, match="names, shapes or dtypes of its arrays differ"):
        checkpoints.restore_latest(like=progress(**other))


def test_other_shapes_are_an_error(checkpoints):
    checkpoints.save(3, {"a": jnp.ones((2, 3))}, 0.5)
    with pytest.raises(UserError, match="checkpoints/3 is damaged or does not match"):
        checkpoints.restore_latest(like={"a": jnp.ones((2, 4))})


def test_a_truncated_checkpoint_is_named_and_skipped(tmp_path, checkpoints):
    for step in (10, 20):
        checkpoints.save(step, tree(step), 0.5)
    for path in (tmp_path / "checkpoints/20").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    restored = checkpoints.restore_latest(like=tree(0))

    assert str(tmp_path / "checkpoints/20") in restored.damaged[20]
    assert restored.tree["a"][0, 0] == 10


@pytest.mark.parametrize(
    "damage",
    ["", "[]", "\x00", "[" * 100_000, None, '{"custom_metadata": {"sha256": ""}}'],
)
def test_damaged_metadata_are_an_error_that_names_the_folder(
    tmp_path, checkpoints, damage
):
    checkpoints.save(3, tree(0), 0.5)
    file = tmp_path / "checkpoints/3/_CHECKPOINT_METADATA"
    file.unlink()
    file.mkdir() if damage is None else file.write_text(damage)
    assert latest_rows(tmp_path / "checkpoints") is None
    again = Checkpoints(tmp_path / "checkpoints")
    with pytest.raises(UserError, match=f"{tmp_path}/checkpoints/3 is damaged"):
        again.restore_latest(like=tree(0))
    again.close()


@pytest.mark.parametrize("error", [TypeError, NameError, MemoryError])
def test_a_defect_of_the_code_is_not_reported_as_damage(
    checkpoints, monkeypatch, error
):
    def restore(*_, **__):
        raise error

    checkpoints.save(3, tree(0), 0.5)
    monkeypatch.setattr(checkpoints._manager, "restore", restore)
    with pytest.raises(error):
        checkpoints.restore_latest(like=tree(0))


def flip(path, rng):
    """Flips one bit of a file."""
    content = bytearray(path.read_bytes())
    bit = int(rng.integers(8 * len(content)))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def largest_file(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def random_tree(seed):
    rng = np.random.default_rng(seed)
    return {"a": jnp.asarray(rng.normal(size=(64, 64)), jnp.float32), "empty": {}}


def test_a_flipped_bit_of_an_array_is_noticed(tmp_path, checkpoints):
    checkpoints.save(1, random_tree(0), 0.5)
    path = largest_file(tmp_path / "checkpoints/1")
    flip(path, np.random.default_rng(0))
    with pytest.raises(UserError, match="checkpoints/1 is damaged"):
        checkpoints.restore_latest(like=random_tree(1))


def test_other_metrics_than_those_saved_are_noticed(tmp_path, checkpoints):
    checkpoints.save(1, tree(1), 0.5, [{"epoch": 1, "test_top1": 0.25}])
    path = tmp_path / "checkpoints/1/_CHECKPOINT_METADATA"
    path.write_text(path.read_text().replace("0.25", "0.75"))
    with pytest.raises(UserError, match="do not match its checksum"):
        checkpoints.restore_latest(like=tree(0))


def test_the_last_good_checkpoint_is_restored_with_its_rows(tmp_path, checkpoints):
    for step in (10, 20):
        checkpoints.save(step, tree(step), 0.5, [{"step": step}])
    flip(largest_file(tmp_path / "checkpoints/20"), np.random.default_rng(3))

    for restore in (checkpoints.restore_latest, checkpoints.restore_best):
        restored = restore(like=tree(0))
        assert restored.step == 10
        assert restored.tree["a"][0, 0] == 10
        assert restored.rows == [{"step": 10}]
        (message,) = restored.damaged.values()
        assert str(tmp_path / "checkpoints/20") in message
    assert steps(tmp_path) == [10, 20]  # Restoring moves nothing.


def test_a_damaged_accuracy_hides_no_better_checkpoint(tmp_path, checkpoints):
    for step, top1 in ((1, 0.75), (2, 0.5), (3, 0.625)):
        checkpoints.save(step, tree(step), top1)
    path = tmp_path / "checkpoints/1/_CHECKPOINT_METADATA"
    path.write_text(path.read_text().replace("0.75", "0.15"))
    again = Checkpoints(tmp_path / "checkpoints")
    restored = again.restore_best(like=tree(0))
    again.close()
    assert (restored.step, list(restored.damaged)) == (3, [1])
    assert restored.tree["a"][0, 0] == 3


def test_a_pipe_in_place_of_a_file_does_not_block(tmp_path, checkpoints):
    checkpoints.save(1, tree(1), 0.5)
    path = tmp_path / "checkpoints/1/_CHECKPOINT_METADATA"
    path.unlink()
    os.mkfifo(path)
    assert latest_rows(tmp_path / "checkpoints") is None
    with pytest.raises(UserError, match=f"{path} is not a regular file"):
        Checkpoints(tmp_path / "checkpoints")


def test_damaged_checkpoints_are_moved_aside_under_unique_names(tmp_path, checkpoints):
    aside = tmp_path / "damaged-checkpoints"
    checkpoints.save(10, tree(10), 0.5)
    for expected in ("20", "20-2"):
        checkpoints.save(20, tree(20), 0.9)
        content = (tmp_path / "checkpoints/20/_CHECKPOINT_METADATA").read_bytes()
        assert checkpoints.set_aside([20]) == [aside / expected]
        assert (aside / expected / "_CHECKPOINT_METADATA").read_bytes() == content
        assert (checkpoints.latest_step, checkpoints.best_step) == (10, 10)
    checkpoints.save(20, tree(20), 0.9)
    assert checkpoints.restore_latest(like=tree(0)).step == 20


def test_nothing_is_moved_to_where_a_symbolic_link_leads(tmp_path, checkpoints):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "damaged-checkpoints").symlink_to(tmp_path / "elsewhere")
    checkpoints.save(20, tree(20), 0.9)
    with pytest.raises(UserError, match="damaged-checkpoints is a symbolic link"):
        checkpoints.set_aside([20])
    assert not list((tmp_path / "elsewhere").iterdir())
    assert checkpoints.latest_step == 20


def test_an_older_damaged_checkpoint_does_not_block_newer_ones(tmp_path):
    first = Checkpoints(tmp_path / "checkpoints")
    for step, top1 in ((1, 0.9), (2, 0.5), (3, 0.6)):
        first.save(step, tree(step), top1)
    first.close()
    for path in (tmp_path / "checkpoints/1").rglob("*"):
        if path.is_file():
            path.write_bytes(b"\x00")

    again = Checkpoints(tmp_path / "checkpoints")
    restored = again.restore_latest(like=tree(0))
    assert (restored.step, restored.damaged) == (3, {})
    assert again.best_step == 3
    again.save(4, tree(4), 0.7)
    again.close()
    assert {3, 4} <= set(steps(tmp_path))


def test_if_all_checkpoints_are_damaged_none_is_moved(tmp_path, checkpoints):
    for step in (1, 2):
        checkpoints.save(step, tree(step), 0.5)
        (tmp_path / f"checkpoints/{step}/_CHECKPOINT_METADATA").write_text("null")
    with pytest.raises(UserError, match="checkpoints/2 .*checkpoints/1 .*start a new"):
        checkpoints.restore_latest(like=tree(0))
    assert steps(tmp_path) == [1, 2]


def test_checkpoints_of_earlier_versions_are_restored(tmp_path):
    """They have no checksum, and their test accuracy is in a separate file."""
    options = ocp.CheckpointManagerOptions(
        best_fn=lambda metrics: metrics["test_top1"], enable_async_checkpointing=False
    )
    with ocp.CheckpointManager(tmp_path / "checkpoints", options=options) as manager:
        for step, top1 in ((1, 0.9), (2, 0.5)):
            manager.save(
                step,
                args=ocp.args.StandardSave(tree(step)),
                metrics={"test_top1": top1},
            )
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert (checkpoints.latest_step, checkpoints.best_step) == (2, 1)
    restored = checkpoints.restore_latest(like=tree(0))
    assert restored.tree["a"][0, 0] == 2
    assert restored.rows is None
    checkpoints.close()


class Named(NamedTuple):
    a: jax.Array


def test_containers_with_the_same_names_have_the_same_structure(checkpoints):
    checkpoints.save(1, Named(jnp.ones(3)), 0.5)
    restored = checkpoints.restore_latest(like={"a": jnp.zeros(3)}).tree
    np.testing.assert_array_equal(restored["a"], jnp.ones(3))
