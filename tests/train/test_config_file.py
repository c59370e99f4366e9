"""Files of options: `--config run.yaml`, and the one in a run's folder."""

import json

import pytest
import yaml

from train import cli
from train.command_line import option_file, options
from train.config import TrainingConfig
from train.experiments.compare import CompareConfig
from train.experiments.paper.table import TableConfig
from train.run import folder as run_folder
from train.run_config import RunConfig

from .results import without_times

COMMANDS = {"run": RunConfig, "compare": CompareConfig, "table": TableConfig}


def expanded(tmp_path, text, *arguments, command="run"):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    first, *rest = options.check_and_expand(
        [command, "--config", str(path), *arguments], COMMANDS
    )
    assert first == command
    return [text for text in rest if text not in ("--config", str(path))]


def test_a_file_becomes_options(tmp_path):
    text = """
        learning_rate: 1e-3
        milestones: [3, 4]
        batch-size: 16
        batch_norm: false
        tensorboard: true
        polyak_factor: null
        model_options: []
    """
    assert expanded(tmp_path, text) == [
        "--learning-rate=0.001",
        *("--milestones", "3", "4"),
        "--batch-size=16",
        "--no-batch-norm",
        "--tensorboard",
        "--polyak-factor=None",
        "--model-options",
    ]


def test_integers_are_decimal(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("seed: 010\nbatch-size: 0x10\n")
    found = option_file.read(path, {"seed": int, "batch_size": int})
    assert found == {"seed": 10, "batch_size": 16}


@pytest.mark.parametrize(
    "arguments",
    [("--epochs", "7"), ("--epochs=7",), ("--epochs", "7", "--no-batch-norm")],
)
def test_the_command_line_overrides_the_file(tmp_path, arguments):
    text = "epochs: 5\nbatch_norm: true\nseed: 3"
    got = expanded(tmp_path, text, *arguments)
    assert got[: len(arguments)] == list(arguments)
    assert "--epochs=5" not in got
    assert ("--batch-norm" in got) == ("--no-batch-norm" not in arguments)
    assert got[-1] == "--seed=3"


def test_other_commands_take_files_too(tmp_path):
    assert expanded(tmp_path, "seeds: 2", "6", command="table") == ["6", "--seeds=2"]
    text = "optimizers: [sgd, adam@0.001]"
    got = expanded(tmp_path, text, command="compare")
    assert got == ["--optimizers", "sgd", "adam@0.001"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr: 0.1", "there is no option 'lr'. Did you mean learning_rate?"),
        ("optimiser: sgd", "there is no option 'optimiser'. Did you mean optimizer?"),
        ("colour: red", "there is no option 'colour'."),
        ("3: 4", "there is no option '3'."),
        ("config: a.yaml", "there is no option 'config'.\n"),
        ("epochs: 5\nseed: 1\nepochs: 6", "'epochs' is set twice"),
        ("weight_decay: 1\nweight-decay: 2", "'weight-decay' is set twice"),
        ("epochs: 2026-01-02", "'epochs' is \"2026-01-02\", not a whole number"),
        ("epochs: many", "'epochs' is \"many\", not a whole number"),
        ("epochs: 1.5", "'epochs' is 1.5, not a whole number"),
        ("learning_rate: fast", "'learning_rate' is \"fast\", not a number"),
        ("milestones: 3", "'milestones' is 3, not a list"),
        ("scope: all", "not one of 'kernel', 'layer'"),
        ("optimizer: {name: sgd}", "'optimizer' is"),
        ("[sgd]", "holds a list"),
        ("sgd", "holds a string"),
        ("a: b: c", "is not a YAML file"),
        ("!!python/object/apply:os.system ['true']", "is not a YAML file"),
    ],
)
def test_an_error_in_a_file_is_named_on_one_line(tmp_path, text, words, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert cli.main(["--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert f"--config {path}" in error
    assert words in error
    assert error.count("\n") == 1


def test_a_missing_file_is_named(tmp_path, capsys):
    assert cli.main([f"--config={tmp_path / 'none.yaml'}"]) == 2
    assert "none.yaml" in capsys.readouterr().err


def test_every_option_has_a_type_that_a_file_can_hold():
    for config in COMMANDS.values():
        types = options.option_types(config)
        assert "launch" not in types
        assert {"config", "epochs", "parallel", "cache_dir"} <= types.keys()
    assert "number" not in options.option_types(TableConfig)
    assert "coordinator" in options.option_types(RunConfig)
    assert "seed" not in options.option_types(TrainingConfig)


def test_a_runs_own_file_reproduces_the_run(tiny_setting, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = "--batch-size 16 --epochs 1 --parallel jit --seed 3 --learning-rate 5e-4"
    assert cli.main([*options.split(), "--run-dir", "a"]) == 0
    written = yaml.safe_load((tmp_path / "a/config.yaml").read_text())
    recorded = json.loads((tmp_path / "a/record.json").read_text())["config"]
    assert written["learning_rate"] == 5e-4
    assert written == {
        name: value
        for name, value in recorded.items()
        if value is not None
        and name not in ("runs_dir", "run_dir", "resume", "cache_dir")
    }

    assert cli.main(["--config", "a/config.yaml", "--run-dir", "b"]) == 0
    assert without_times(tmp_path / "a") == without_times(tmp_path / "b")
    assert cli.main(["--config", "a/config.yaml", "--seed", "4", "--run-dir", "c"]) == 0
    assert run_folder.load(tmp_path / "c").config.seed == 4
    assert without_times(tmp_path / "a") != without_times(tmp_path / "c")

    # Another number of epochs is recorded, and a folder without the file gets one.
    assert cli.main(["--resume", "a", "--epochs", "2"]) == 0
    assert yaml.safe_load((tmp_path / "a/config.yaml").read_text())["epochs"] == 2
    (tmp_path / "a/config.yaml").unlink()
    assert cli.main(["--resume", "a"]) == 0
    assert yaml.safe_load((tmp_path / "a/config.yaml").read_text())["epochs"] == 2
