"""Learning rates at selected steps, computed by hand."""

import math

import pytest

from train.training import schedules

STEPS_PER_EPOCH = 10


def rates(name, epochs, warmup_epochs=0):
    config = schedules.ScheduleConfig(
        name,
        milestones=(3, 6),
        milestone_factor=0.2,
        restart_epochs=4,
        warmup_epochs=warmup_epochs,
    )
    schedule = schedules.create(config, 0.1, STEPS_PER_EPOCH)
    return [float(schedule(step)) for step in range(epochs * STEPS_PER_EPOCH)]


def test_a_constant_schedule_is_constant():
    assert rates("constant", 2) == pytest.approx([0.1] * 20)


@pytest.mark.parametrize("warmup_epochs", [0, 2])
def test_steps_drop_after_the_milestones_of_the_run(warmup_epochs):
    got = rates("steps", 8, warmup_epochs)
    after_warmup = warmup_epochs * STEPS_PER_EPOCH
    expected = [0.1] * 30 + [0.02] * 30 + [0.004] * 20
    assert got[after_warmup:] == pytest.approx(expected[after_warmup:])


def test_cosine_restarts():
    got = rates("cosine", 8)
    assert got[0] == pytest.approx(0.1)
    assert got[20] == pytest.approx(0.05)
    assert got[39] == pytest.approx(0.05 * (1 + math.cos(math.pi * 39 / 40)), rel=1e-4)
    assert got[40:] == pytest.approx(got[:40])


@pytest.mark.parametrize("name", ["constant", "steps", "cosine"])
def test_warmup_rises_in_equal_steps_and_starts_above_zero(name):
    got = rates(name, 2, warmup_epochs=1)
    assert got[:10] == pytest.approx([0.01 * (step + 1) for step in range(10)])
    assert got[10] == pytest.approx(0.1)


def test_a_warmup_of_one_step_starts_at_the_full_rate():
    config = schedules.ScheduleConfig(warmup_epochs=1)
    schedule = schedules.create(config, 0.1, steps_per_epoch=1)
    assert [float(schedule(step)) for step in range(3)] == pytest.approx([0.1] * 3)
