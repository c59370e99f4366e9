"""Checkpoints: which are kept, that they come back whole, and damage."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import models
from train.errors import UserError
from train.run.checkpoints import Checkpoints
from train.training import optimizers, programs
from train.training.state import Progress, create_state


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


def test_a_step_saved_already_is_left_as_it_is(checkpoints):
    checkpoints.save(1, tree(1), 0.1)
    checkpoints.save(1, tree(2), None)
    assert checkpoints.restore(1, tree(0))["a"][0, 0] == 1
    assert checkpoints.best_step == 1


def test_an_empty_folder_has_none(checkpoints):
    assert checkpoints.latest_step is None
    assert checkpoints.best_step is None


def progress(batch_norm=True, name="insgd-l2"):
    tx = optimizers.create(
        name,
        optax.constant_schedule(0.1),
        momentum=0.9,
        weight_decay=5e-4,
        scope="kernel",
        normalizer="log",
    ).tx
    model = models.create("custom_cnn", batch_norm=batch_norm)
    state = create_state(model, tx, jax.random.key(0), (8, 8, 1))
    return Progress(state, programs.zero_totals())


def test_a_train_state_comes_back_bit_by_bit(checkpoints):
    # Values with all bits in use, other ones in each array.
    rng = np.random.default_rng(0)
    saved = jax.tree.map(
        lambda w: jnp.asarray(rng.normal(size=w.shape) * 1e6, w.dtype), progress()
    )
    checkpoints.save(3, saved, 0.5)

    restored = checkpoints.restore(3, like=progress())

    assert jax.tree.structure(restored.state.params) == jax.tree.structure(
        saved.state.params
    )
    for got, expected in zip(
        jax.tree.leaves(restored), jax.tree.leaves(saved), strict=True
    ):
        assert isinstance(got, jax.Array)
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("other", [{"batch_norm": False}, {"name": "sgd"}])
def test_a_checkpoint_of_another_configuration_is_an_error(checkpoints, other):
    checkpoints.save(3, progress(), 0.5)
    with pytest.raises(UserError, match="does not match the run's configuration"):
        checkpoints.restore(3, like=progress(**other))


def test_other_shapes_are_an_error(checkpoints):
    checkpoints.save(3, {"a": jnp.ones((2, 3))}, 0.5)
    with pytest.raises(UserError, match="checkpoints/3 is damaged or does not match"):
        checkpoints.restore(3, like={"a": jnp.ones((2, 4))})


def test_a_damaged_checkpoint_is_an_error_that_offers_the_one_before(
    tmp_path, checkpoints
):
    for step in (10, 20):
        checkpoints.save(step, tree(step), 0.5)
    for path in (tmp_path / "checkpoints/20").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    with pytest.raises(UserError) as error:
        checkpoints.restore(20, like=tree(0))

    assert str(tmp_path / "checkpoints/20") in str(error.value)
    assert "Delete that folder to go on from step 10." in str(error.value)
    assert checkpoints.restore(10, like=tree(0))["a"][0, 0] == 10


@pytest.mark.parametrize("damage", ["", "[]", "\x00", None])
def test_damaged_metrics_are_an_error_that_names_the_folder(
    tmp_path, checkpoints, damage
):
    checkpoints.save(3, tree(0), 0.5)
    (file,) = tmp_path.glob("**/3/metrics/metrics")
    file.unlink()
    file.mkdir() if damage is None else file.write_text(damage)
    with pytest.raises(UserError, match=f"A checkpoint in {tmp_path}.* is damaged"):
        Checkpoints(file.parents[2])


@pytest.mark.parametrize("error", [TypeError, NameError, MemoryError])
def test_a_defect_of_ours_is_not_called_damage(checkpoints, monkeypatch, error):
    def restore(*_, **__):
        raise error

    checkpoints.save(3, tree(0), 0.5)
    monkeypatch.setattr(checkpoints._manager, "restore", restore)
    with pytest.raises(error):
        checkpoints.restore(3, like=tree(0))
