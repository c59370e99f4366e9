"""Options: values that are refused, names of runs, and JSON."""

import dataclasses
import json

import pytest

from train.run_config import RunConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": -0.1}, "--learning-rate must be at least 0"),
        ({"learning_rate": float("nan")}, "--learning-rate .* got nan"),
        ({"learning_rate": float("inf")}, "--learning-rate .* got inf"),
        ({"momentum": 1.0}, "--momentum must be below 1, got 1.0"),
        ({"weight_decay": -1.0}, "--weight-decay"),
        ({"epochs": 0}, "--epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "--batch-size"),
        ({"warmup_epochs": -1}, "--warmup-epochs"),
        ({"milestones": (5, 5)}, "--milestones"),
        ({"milestones": ()}, "--milestones"),
        (
            {"schedule": "steps", "milestones": (2, 5), "warmup_epochs": 3},
            "must not lie in the 3 epochs of warm-up",
        ),
        (
            {"dataset": "cifar"},
            "unknown dataset 'cifar': expected one of digits, cifar10",
        ),
        ({"dataset": "folder:"}, "unknown dataset 'folder:'"),
        ({"dataset": "folder"}, "unknown dataset 'folder'"),
        ({"dataset": "digits:3"}, "unknown dataset 'digits:3'"),
        ({"optimizer": "sdg"}, "unknown optimizer 'sdg': expected one of sgd"),
        ({"model_options": ("stem",)}, "--model-options must be NAME=VALUE"),
        ({"polyak_factor": -0.1}, "--polyak-factor must be at least 0"),
        (
            {"optimizer": "adam", "polyak_factor": 0.3},
            "--polyak-factor applies only to SGD, INSGD and lms-newton; it has",
        ),
        ({"run_dir": "a", "resume": "b"}, "--run-dir is for a new run"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RunConfig(**options)


def test_the_learning_rate_defaults_to_the_optimizers_own():
    assert RunConfig(optimizer="adam").initial_learning_rate == 0.001
    assert RunConfig(optimizer="adam", learning_rate=0.0).initial_learning_rate == 0.0


def test_names_show_common_options_that_differ():
    assert RunConfig().readable_name == "digits-custom_cnn-insgd-l2-lr0.1-seed0"
    assert (
        RunConfig(
            dataset="folder:/data/pets",
            optimizer="sgd",
            learning_rate=0.25,
            batch_norm=False,
            batch_size=256,
            schedule="cosine",
            seed=3,
        ).readable_name
        == "pets-custom_cnn-sgd-lr0.25-no-batch-norm-cosine-batch256-seed3"
    )
    bounded = RunConfig(learning_rate=1.0, polyak_factor=0.3).readable_name
    assert bounded == "digits-custom_cnn-insgd-l2-lr1-polyak0.3-seed0"


def test_names_fit_file_systems():
    options = ("text=" + "é" * 300,)
    name = RunConfig(
        model="tests.train.own_things:options", model_options=options, seed=3
    ).readable_name
    assert name.endswith("ééé-seed3")
    assert len(name.encode()) < 220


def test_names_show_all_other_options_that_differ():
    name = RunConfig(
        momentum=0.5,
        nesterov=True,
        warmup_epochs=2,
        schedule="steps",
        milestones=(3, 4),
        ema_decay=0.999,
        epochs=7,
        chunk_steps=3,
    ).readable_name
    assert name == (
        "digits-custom_cnn-insgd-l2-lr0.1-steps-momentum0.5-nesterov-milestones3-4-"
        "warmup-epochs2-ema-decay0.999-chunk-steps3-seed0"
    )


def test_json_keeps_the_options():
    config = RunConfig(
        model="vit",
        model_options=("layer_norm=False",),
        optimizer="insgd-l3",
        schedule="steps",
        milestones=(3, 4),
    )
    values = json.loads(json.dumps(config.to_json()))
    assert RunConfig.from_json(values) == dataclasses.replace(config, learning_rate=0.1)


def test_options_that_had_no_effect_are_dropped_from_a_record():
    values = RunConfig(optimizer="sgd").to_json()
    read = RunConfig.from_json(values | {"scope": "layer", "milestones": [3]})
    assert read == RunConfig(optimizer="sgd", learning_rate=0.1)


def test_image_sizes_are_only_for_folders():
    assert RunConfig(dataset="folder:/a/pets", image_size=32).readable_name == (
        "pets-custom_cnn-insgd-l2-lr0.1-image-size32-seed0"
    )
    with pytest.raises(ValueError, match="--image-size applies only to folder:P"):
        RunConfig(image_size=32)
    with pytest.raises(ValueError, match="--image-size must be at least 1, got 0"):
        RunConfig(dataset="folder:/a/pets", image_size=0)
