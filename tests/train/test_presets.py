"""The presets against the paper's tables, as printed."""

import dataclasses
import typing

import pytest

import models
from train.experiments.paper import presets
from train.experiments.paper.report import dry_run
from train.experiments.paper.table import TableConfig
from train.run_config import RunConfig
from train.training import optimizers

# Optimizer, other columns of the paper's table, learning rate, top-1 (and top-5).
PAPER = {
    3: """
        sgd 0.1 92.57 0.11
        adam 0.001 91.34 0.01
        adagrad 0.1 89.41 0.01
        adadelta 0.1 89.24 0.01
        insgd-l1 0.1 92.67 0.13
        insgd-l2 0.1 92.60 0.11""",
    4: """
        sgd 128 0.1 92.57 0.11
        insgd-l1 128 0.1 92.67 0.13
        insgd-l2 128 0.1 92.60 0.11
        sgd 256 0.1 92.43 0.23
        insgd-l1 256 0.1 92.46 0.24
        insgd-l2 256 0.1 92.44 0.23
        sgd 512 0.2 92.25 0.26
        insgd-l1 512 0.2 92.38 0.21
        insgd-l2 512 0.2 92.32 0.26""",
    5: """
        adam 0.001 91.75 0.09
        adagrad 0.05 87.24 0.01
        adadelta 0.05 84.78 0.29
        sgd 0.05 93.06 0.11
        insgd-l1 0.05 93.04 0.16
        insgd-l2 0.05 93.10 0.01""",
    6: """
        sgd 0.1 79.24 0.39
        insgd-l1 0.1 79.41 0.37
        insgd-l2 0.1 79.30 0.38
        sgd 0.25 65.92 1.32
        insgd-l1 0.25 73.24 1.17
        insgd-l2 0.25 74.68 0.85
        sgd 0.01 79.08 0.34
        insgd-l1 0.01 78.83 0.43
        insgd-l2 0.01 78.92 0.31""",
    7: """
        sgd custom_cnn 0.1 11.07 2.74
        insgd-l1 custom_cnn 0.1 64.85 10.98
        insgd-l2 custom_cnn 0.1 74.78 7.84
        sgd resnet20 0.1 90.14 0.18
        insgd-l1 resnet20 0.1 90.55 0.26
        insgd-l2 resnet20 0.1 90.70 0.15""",
    8: """
        sgd () 0.05 82.79 0.40
        adam () 0.0005 85.38 0.44
        insgd-l1 () 0.05 84.52 0.43
        insgd-l2 () 0.05 84.49 0.53
        sgd ('layer_norm=False',) 0.01 79.90 0.21
        adam ('layer_norm=False',) 0.0005 85.13 0.45
        insgd-l1 ('layer_norm=False',) 0.05 83.50 0.18
        insgd-l2 ('layer_norm=False',) 0.05 83.32 0.48""",
    9: """
        sgd 128 0.1 78.24 0.43 94.31 0.09
        insgd-l1 128 0.1 78.08 0.24 94.34 0.17
        insgd-l2 128 0.1 78.47 0.16 94.39 0.20
        sgd 256 0.1 77.22 0.43 93.79 0.43
        insgd-l1 256 0.1 78.15 0.43 94.54 0.43
        insgd-l2 256 0.1 77.89 0.43 93.98 0.43""",
    10: """
        adam 0.001 66.71 0.08 87.65 0.15
        sgd 0.1 75.60 0.14 92.67 0.12
        insgd-l1 0.1 75.92 0.43 92.75 0.10
        insgd-l2 0.1 75.90 0.14 92.81 0.04""",
}
NETWORKS = {
    3: "resnet20",
    4: "resnet20",
    5: "mobilenet_v3_large",
    6: "custom_cnn",
    8: "vit",
    9: "wrn18",
    10: "resnet50",
}


def test_each_table_has_a_number_its_rows_and_its_network():
    number = typing.get_type_hints(TableConfig)["number"]
    assert typing.get_args(number) == tuple(presets.TABLES)
    assert list(PAPER) == list(presets.TABLES)
    assert {*NETWORKS, 7} == set(presets.TABLES)  # 7 has several networks.


@pytest.mark.parametrize("number", PAPER)
def test_rows_match_the_papers(number):
    table = presets.TABLES[number]
    got = []
    for row in table.rows:
        chosen = presets.options(table, row)
        default = {"model_options": ()}
        other = [str((default | chosen)[option]) for option in table.columns]
        figures = [row.top1, *([row.top5] if row.top5 else [])]
        got.append(
            [chosen["optimizer"], *other, str(chosen["learning_rate"])]
            + [f"{number:.2f}" for figure in figures for number in figure]
        )
    assert got == [line.split() for line in PAPER[number].split("\n")[1:]]


@pytest.mark.parametrize("number", presets.TABLES)
def test_protocols_match_the_papers(number):
    table = presets.TABLES[number]
    assert table.seeds == (3 if number == 10 else 7)
    assert table.epochs == {8: 300, 10: 90}.get(number, 200)
    assert table.dataset == {9: "cifar100", 10: "imagenet2012"}.get(number, "cifar10")
    for row in table.rows:
        chosen = presets.options(table, row)
        optimizers.check_name(chosen["optimizer"])
        assert chosen["weight_decay"] == (1e-4 if number == 10 else 5e-4)
        assert chosen["momentum"] == 0.9
        assert chosen["model"] == NETWORKS.get(number, chosen["model"])
        assert chosen.get("batch_norm", True) == (number != 7)
        if number not in (4, 9):
            assert chosen["batch_size"] == (256 if number in (5, 8, 10) else 128)
        if number == 8:
            assert (chosen["schedule"], chosen["restart_epochs"]) == ("cosine", 100)
        elif number == 10:
            assert (chosen["milestones"], chosen["milestone_factor"]) == ((30, 60), 0.1)
        else:
            assert chosen["milestones"] == (79, 119, 159)
            assert chosen["milestone_factor"] == 0.2


@pytest.mark.parametrize("number", presets.TABLES)
def test_networks_accept_the_options_of_every_row(number):
    table = presets.TABLES[number]
    for row in table.rows:
        # The options leave out the dataset, which does not matter here.
        run = RunConfig(dataset="digits", **presets.options(table, row, 1))
        models.create(run.model, **run.network_options)


@pytest.mark.parametrize(
    ("number", "epochs", "expected"),
    [
        (6, 200, {"schedule": "steps", "milestones": (79, 119, 159)}),
        (6, 20, {"schedule": "steps", "milestones": (8, 12, 16)}),
        (6, 6, {"schedule": "steps", "milestones": (2, 4, 5)}),
        (6, 2, {"schedule": "steps", "milestones": (1,)}),
        (6, 1, {"schedule": "constant"}),
        (8, 30, {"schedule": "cosine", "restart_epochs": 10}),
        (8, 1, {"schedule": "cosine", "restart_epochs": 1}),
        (10, 9, {"schedule": "steps", "milestones": (3, 6)}),
    ],
)
def test_shortened_runs_scale_the_schedule(number, epochs, expected):
    table = presets.TABLES[number]
    chosen = presets.options(table, table.rows[0], epochs)
    assert chosen["epochs"] == epochs
    assert expected.items() <= chosen.items()
    # The table itself is unchanged.
    whole = presets.options(table, table.rows[0])
    assert whole["epochs"] == table.epochs
    assert whole.get("milestones") in (None, (79, 119, 159), (30, 60))


@pytest.mark.parametrize("schedule", ["constant", "cosine", "steps"])
def test_a_table_may_leave_its_schedule_to_the_defaults(schedule):
    table = dataclasses.replace(
        presets.TABLES[6],
        options={"model": "custom_cnn", "batch_size": 128, "schedule": schedule},
    )
    RunConfig(dataset="digits", **presets.options(table, table.rows[0], 20))
    printed = dry_run(6, table, 20, seeds=1, dataset="digits", with_controls=False)
    assert {
        "constant": " constant ",
        "cosine": " cosine, restarts every 10 epochs ",
        "steps": " x0.2 after epochs 8/12/16 ",
    }[schedule] in printed
