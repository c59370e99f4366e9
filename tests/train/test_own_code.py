"""Custom networks, datasets and optimizers, given as MODULE:NAME."""

import json
import sys

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import insgd_optax
import models
import train
from tests.docs import ROOT, python_blocks
from train import cli, own_code
from train.benchmark import workload
from train.data import registry
from train.errors import UserError
from train.experiments import series
from train.run import metrics, plots
from train.run.experiment import Experiment
from train.run_config import RunConfig
from train.training import optimizers
from train.training.optimizers import OptimizerConfig

from .tiny_cnn import TinyCNN

OWN = "tests.train.own_things"
MINE = ["--model", f"{OWN}:Linear", "--dataset", f"{OWN}:load"]


@pytest.fixture
def start(tmp_path, capsys):
    """Executes a command line on one device; returns status, output and errors."""

    def start(*arguments):
        try:
            status = cli.main(list(arguments))
        except SystemExit as error:  # The parser draws a box around its message.
            text = capsys.readouterr().err.replace("│", " ")
            return error.code, "", " ".join(text.split())
        return status, *capsys.readouterr()

    return start


def test_the_guide_s_code_is_trained_resumed_evaluated_and_loaded(
    start, tmp_path, monkeypatch
):
    source = "\n".join(python_blocks("docs/own_code.md"))
    (tmp_path / "my_project.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_project", raising=False)
    run_dir = str(tmp_path / "run")
    options = [
        *("--model", "my_project:Net", "--model-options", "width=4"),
        *("--dataset", "my_project:load", "--epochs", "1", "--parallel", "jit"),
    ]

    status, out, _ = start(
        *options,
        *("--optimizer", "my_project:make", "--learning-rate", "0.05"),
        *("--run-dir", run_dir),
    )
    assert status == 0
    assert "my_project:Net on halves (256 training, 64 test images)" in out
    record = json.loads((tmp_path / "run/record.json").read_text())
    assert record["own_code"].keys() == {
        f"my_project:{name}" for name in ("Net", "load", "make")
    }
    resume = ["--resume", run_dir, "--epochs", "2", *options[:2], *options[4:6]]
    resume.append("--optimizer=my_project:make")
    status, out, _ = start(*resume)
    assert status == 0
    assert "from step 2." in out
    top1 = metrics.read(tmp_path / "run/metrics.jsonl")[-1]["test_top1"]
    status, out, err = start("eval", run_dir, "--trust-code")
    assert (status, err) == (0, "")
    assert f"top-1 {100 * top1:.2f} %" in out
    run = train.load_run(run_dir, trust_code=True)
    assert run.model.width == 4
    images, labels = run.config.load_dataset().test
    assert (run.predict(images).argmax(-1) == labels).mean() == pytest.approx(top1)

    own_code._checksum.cache_clear()
    (tmp_path / "my_project.py").write_text(source + "\n# Another file.\n")
    error = start("eval", run_dir, "--trust-code")[2]
    assert "the code of my_project:load and my" in error
    with pytest.warns(UserWarning, match="the code of my_project:load and"):
        train.load_run(run_dir, trust_code=True)
    own_code._checksum.cache_clear()


def test_a_network_without_train_is_trained_with_a_capture_of_its_own(start, tmp_path):
    status, out, _ = start(
        *MINE,
        *("--optimizer", f"{OWN}:insgd_l1", "--epochs", "1", "--batch-size", "16"),
        *("--parallel", "jit", "--runs-dir", str(tmp_path)),
    )
    assert status == 0
    assert "learning rate 0.05" in out
    (path,) = tmp_path.iterdir()
    assert path.name == "own_things-load-Linear-insgd_l1-lr0.05-batch16-seed0"
    run = train.load_run(path, trust_code=True)
    assert run.predict(registry.load(MINE[3], tmp_path).test.images).shape


def test_a_capture_of_ones_own_is_evaluated_in_each_step(monkeypatch, small_dataset):
    """It happens in steps that a capture of the same period here would leave out."""
    monkeypatch.setattr(models, "create", lambda name, **options: TinyCNN(**options))
    config = RunConfig(
        batch_size=16, parallel="jit", optimizer=f"{OWN}:newton", learning_rate=0.05
    )
    experiment = Experiment(config, small_dataset)
    progress, averaged = experiment.start(), []
    for step in range(3):
        progress = experiment.train_chunk(progress, step, 1)
        condition_numbers = insgd_optax.covariance_condition_numbers(
            progress.state.opt_state
        )
        averaged.append(max(condition_numbers.values()) > 1)
    assert averaged == [False, False, True]


def test_an_exception_of_a_capture_is_attributed_to_its_optimizer(start, tmp_path):
    status, _, err = start(
        *MINE,
        *("--optimizer", f"{OWN}:failing_capture", "--epochs", "1"),
        *("--batch-size", "16", "--parallel", "jit", "--runs-dir", str(tmp_path)),
    )
    assert status == 2
    assert "RuntimeError: of my own" in err
    assert f"The capture of the optimizer {OWN}:failing_capture failed" in err


@pytest.mark.parametrize("part", ["model", "dataset", "optimizer"])
def test_a_record_imports_no_code_unless_trusted(start, tmp_path, monkeypatch, part):
    """A run folder from elsewhere, opened where its module can be imported."""
    run_dir, marker = tmp_path / "run", tmp_path / "imported"
    config = RunConfig().to_json() | {part: "beside:thing", "learning_rate": 0.1}
    dataset = {"name": "x", "train_images": 1, "test_images": 1}
    run_dir.mkdir()
    (run_dir / "record.json").write_text(
        json.dumps({"config": config, "dataset": dataset, "own_code": {}})
    )
    code = f"import pathlib\npathlib.Path({str(marker)!r}).touch()\nthing = print\n"
    (tmp_path / "beside.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "beside", raising=False)
    for arguments in (["--resume"], ["eval"], ["predict"]):
        images = [str(tmp_path)] if arguments == ["predict"] else []
        status, _, err = start(*arguments, str(run_dir), *images)
        assert status == 2
        assert f"names code, which would be run: --{part} beside:thing." in err
    with pytest.raises(UserError, match="trust_code=True to load_run"):
        train.load_run(run_dir)
    assert not marker.exists()
    assert "names code" not in start("eval", str(run_dir), "--trust-code")[2]


def test_compare_trains_custom_code_and_refuses_runs_of_changed_code(
    start, tmp_path, monkeypatch
):
    titles = []
    monkeypatch.setattr(
        plots, "plot_test_error", lambda *given, **_: titles.append(given[-1])
    )
    command = [
        *("compare", "--optimizers", "sgd", f"{OWN}:make@0.05", *MINE),
        *("--epochs", "1", "--batch-size", "16", "--parallel", "jit"),
        *("--runs-dir", str(tmp_path)),
    ]
    status, out, _ = start(*command)
    assert status == 0
    assert f"| {OWN}:make@0.05 | 0.05 " in out
    assert f"{OWN}:Linear on stripes, 1 seed" in titles  # The dataset's own name.
    status, out, _ = start(*command)
    assert "2 of 2 runs are finished." in out
    monkeypatch.setattr(own_code, "_checksum", lambda reference: "another")
    status, _, err = start(*command)
    assert status == 2
    assert f"changed since then: {OWN}:load and {OWN}:Linear." in err


@pytest.mark.slow
def test_workers_train_custom_code(start, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    status, out, _ = start(
        *("compare", "--optimizers", "sgd", f"{OWN}:make@0.05", *MINE),
        *("--epochs", "1", "--batch-size", "16", "--runs-dir", str(tmp_path)),
        *("--parallel", "jit", "--processes", "2"),
    )
    assert status == 0
    assert f"| {OWN}:make@0.05 | 0.05 " in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--model no_such_module:Net", "there is no module 'no_such_module' in the"),
        (f"--model {OWN}.more:Net", f"there is no module '{OWN}.more' in the"),
        (f"--model {OWN}:Missing", "has no 'Missing'. It defines Linear, Stateful, "),
        (f"--model {OWN}:CONSTANT", "must be a function or a class, but is of type in"),
        (f"--model {OWN}:no_module", "but returned an object of type str"),
        (f"--model {OWN}:Wrong", "shape (batch, 3), the number of classes, but return"),
        (f"--model {OWN}:Stateful", "in the collections memory."),
        (f"--model {OWN}:Untrained", "has no parameters, so there is nothing to tr"),
        (f"--model {OWN}:Counting", "The parameter count of tests.train.own_things:C"),
        (
            f"--model {OWN}:Linear --model-options depth=3",
            "no option 'depth'. Its opti",
        ),
        (f"--model {OWN}:Linear --dtype bfloat16", "has no argument dtype"),
        (f"--model {OWN}:Linear --no-batch-norm", "has no option 'batch_norm'"),
        (f"--model {OWN}:needs_width", "needs a value for width"),
        (f"--dataset {OWN}:make", "without arguments that returns a train.ImageDatas"),
        (f"--dataset {OWN}:make", "but needs learning_rate and momentum."),
        (f"--dataset {OWN}:Stateful", "but needs num_classes."),
        (f"--dataset {OWN}:Linear", "but returned an object of type Linear"),
        (f"--model {OWN}:load", "but returned an object of type ImageDataset"),
        (f"--dataset {OWN}:no_rate", "must return a train.ImageDataset, but returned"),
        (f"--dataset {OWN}:one_class", "class_names must be two or more strings"),
        (f"--dataset {OWN}:same_names", "class_names must all be different, got"),
        (f"--dataset {OWN}:two_classes", "labels must be from 0 to 1, as there are 2"),
        (f"--dataset {OWN}:float_images", "the train images must be a NumPy array, ui"),
        (f"--dataset {OWN}:float_labels", "the test labels must be a NumPy array of 2"),
        (f"--dataset {OWN}:listed_labels", "got an object of type list"),
        (f"--dataset {OWN}:other_shapes", "images are of shape (8, 8, 1), the test im"),
        (
            f"--dataset {OWN}:padded",
            "padding of its augmentation must be a whole number, at least 0, g",
        ),
        (f"--dataset {OWN}:no_std", "for each of 1 channels, got (0.3,) and ()"),
        (f"--dataset {OWN}", "one of digits, cifar10"),
        (f"--optimizer {OWN}:make", "has no default learning rate: give"),
        (f"--optimizer {OWN}:no_rate", "must take the learning rate as its first"),
        (f"--optimizer {OWN}:two_classes", "must take the learning rate as its first"),
        (f"--optimizer {OWN}:make --learning-rate 1 --scope layer", "no effect"),
        (f"--optimizer {OWN}:no_module --learning-rate 1", "must return an optax.Grad"),
        (
            "--optimizer optax:lbfgs --learning-rate 1",
            "its update needs 'grad' and 'va",
        ),
        ("--optimizer optax:polyak_sgd", "but not a schedule, which every run passes."),
        (f"--optimizer {OWN}:reshaping", "must return updates of the shapes of the"),
        (
            f"--optimizer {OWN}:noisy",
            "its state holds a PRNG key, which checkpoints ca",
        ),
    ],
)
def test_invalid_custom_code_is_named_in_one_line(start, tmp_path, options, words):
    defaults = {"--model": MINE[1], "--dataset": MINE[3]}
    given = options.split()
    for name, value in defaults.items():
        given += [] if name in given else [name, value]
    status, _, err = start("--batch-size", "16", *given, "--runs-dir", str(tmp_path))
    assert status == 2
    assert words in err
    assert ("Traceback" in err) == ("Loading" in words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", f"{OWN}:raising"], "Making the network"),
        (["--model", f"{OWN}:Raising"], "on images of shape (8, 8, 1), failed"),
        (["--dataset", f"{OWN}:raising"], "Loading the dataset"),
        (
            ["--optimizer", f"{OWN}:raising", "--learning-rate", "1"],
            "Making the optimizer",
        ),
        (["--optimizer", f"{OWN}:stumbling"], "A step of the optimizer"),
    ],
)
def test_an_exception_in_custom_code_is_shown_from_that_code_on(start, options, words):
    given = [*options, *(MINE[2:] if "--dataset" not in options else [])]
    status, _, err = start("--batch-size", "16", *given)
    assert status == 2
    first = err[err.index("Traceback") :].splitlines()[1]
    assert "own_things.py" in first
    assert "LookupError: a bug" in err
    assert words in err.splitlines()[-1]


def test_an_exception_on_import_is_shown_too(start, tmp_path, monkeypatch):
    (tmp_path / "failing_module.py").write_text("import json\n\nimport no_such_thing\n")
    monkeypatch.syspath_prepend(tmp_path)
    status, _, err = start("--model", "failing_module:Net")
    assert status == 2
    assert 'failing_module.py", line 3' in err.splitlines()[1]
    assert err.splitlines()[-1].startswith("Error: Importing failing_module, for")


def test_an_optimizer_receives_the_options_that_it_takes():
    config = OptimizerConfig(momentum=0.8)
    name = f"{OWN}:make"
    assert optimizers.has_option(name, "momentum")
    assert not optimizers.has_option(name, "scope")
    params = {"w": jnp.ones(3)}

    def two_steps(tx):
        state, weights = tx.init(params), params
        for _ in range(2):
            updates, state = tx.update(params, state, weights)
            weights = optax.apply_updates(weights, updates)
        return weights["w"]

    got = two_steps(optimizers.create(name, 0.2, config).tx)
    np.testing.assert_array_equal(got, two_steps(optax.sgd(0.2, 0.8)))
    assert optimizers.default_learning_rate(f"{OWN}:insgd_l1") == 0.05
    assert optimizers.create(f"{OWN}:insgd_l1", 0.2, config).capture is not None
    assert not optimizers.has_option(f"{OWN}:insgd_l1", "normalizer")


def test_runs_of_optimizers_of_one_name_in_two_modules_have_their_own_folders():
    one = RunConfig(optimizer="optax:adam", learning_rate=1.0)
    other = RunConfig(optimizer="optax._src.alias:adam", learning_rate=1.0)
    assert one.readable_name == other.readable_name
    assert len(series.distinct([one, other])) == 2


def test_names_of_custom_code_are_shortened_and_parsed():
    assert registry.absolute("my.data:load") == "my.data:load"
    assert registry.short_name("my.data:load") == "data-load"
    assert registry.short_name("folder:/data/pets") == "pets"
    config = RunConfig(model=f"{OWN}:Linear", optimizer="optax:lion", learning_rate=1.0)
    assert config.readable_name == "digits-Linear-lion-lr1-seed0"
    # A string may be a path, the name of a run's folder may not.
    config = RunConfig(model=f"{OWN}:Linear", model_options=("width=../data/w.npz",))
    name = "digits-Linear-insgd-l2-lr0.1-width-..-data-w.npz-seed0"
    assert config.readable_name == name
    (one,) = workload.parse(f"{OWN}:Linear:width=8@32", (1,), "float32")
    assert (one.model, one.options, one.batch_size) == (
        f"{OWN}:Linear",
        (("width", 8),),
        32,
    )
    (one,) = workload.parse(f"{OWN}:Linear", (5,), "float32")
    assert (one.network, one.batch_size) == (f"{OWN}:Linear", 5)
    with pytest.raises(ValueError, match="is not a network: expected one of"):
        workload.parse("resnet21:width=3", (1,), "float32")


def test_preprocessing_of_images_has_their_mean_and_deviation():
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 3, 2), dtype=np.uint8)
    found = train.Preprocessing.of(images)
    np.testing.assert_allclose(found.mean, (images / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(found.std, (images / 255).std((0, 1, 2)), rtol=1e-12)
