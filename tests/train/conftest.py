"""Small data and runs for the tests of the application."""

import copy
import dataclasses
import functools
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.jax_settings import jax_settings
from train import cli
from train.data.types import ImageDataset
from train.run.experiment import Experiment
from train.run_config import RunConfig
from train.training import in_memory, step

from .stripes import stripes
from .tiny_cnn import TinyCNN


@pytest.fixture
def small_dataset():
    """48 training and 20 test images of 8x8 pixels in 3 classes."""
    return stripes()


@pytest.fixture
def tiny_setting(small_dataset, monkeypatch):
    """Makes commands train a tiny network on small data, whatever their options."""
    # By their names: the first module imports scikit-learn, which takes a second.
    monkeypatch.setattr("train.data.digits.load", lambda: small_dataset)
    monkeypatch.setattr("models.create", lambda name, **options: TinyCNN(**options))


@pytest.fixture(scope="package")
def made_once(tmp_path_factory):
    """Fills a folder with a function; later calls with the same name copy the result.

    Copying a run takes a hundredth of the time of its training.
    """
    made = {}

    def fill(name, make, folder):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("made") / "folder"
            make(made[name])
        shutil.copytree(made[name], folder, dirs_exist_ok=True)

    return fill


@pytest.fixture
def run_dir(tiny_setting, made_once, tmp_path, capsys):
    """The folder of a run on gray images of 8x8: two epochs of three steps each."""

    def make(path):
        options = ["--parallel", "jit", "--batch-size", "16", "--epochs", "2"]
        assert cli.main([*options, "--run-dir", str(path)]) == 0

    made_once("two epochs", make, tmp_path / "run")
    capsys.readouterr()
    return tmp_path / "run"


@pytest.fixture
def image_folder(tmp_path):
    """A folder of 3 training and 1 test image in each of 2 classes, as PNG, 32x32."""
    rng = np.random.default_rng(0)
    root = tmp_path / "images"
    for split, size in (("train", 3), ("test", 1)):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(size):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


@pytest.fixture
def run_pictures():
    """Requested by tests of the pictures that a run draws."""


@pytest.fixture(autouse=True)
def blank_pictures(request, monkeypatch):
    """Makes runs write empty pictures: drawing takes as long as the rest of a run."""

    def write_blank(_, path, title):
        path.write_bytes(b"")

    if "run_pictures" not in request.fixturenames:
        blank = types.SimpleNamespace(
            plot_test_error=write_blank, plot_multipliers=write_blank
        )
        monkeypatch.setattr("train.run.command.plots", blank)


# Options that a run's programs do not depend on, or take as arguments.
_NOT_COMPILED = {
    *("epochs", "seed", "learning_rate", "runs_dir", "run_dir", "resume", "config"),
    *("cache_dir", "tensorboard", "on_divergence", "skip_corrupt_images", "launch"),
}
_COMPILED = [
    field.name
    for field in dataclasses.fields(RunConfig)
    if field.name not in _NOT_COMPILED
]


@pytest.fixture(scope="package")
def experiments():
    """The experiments that runs share, by options and data, and by seed and rate."""
    return {}


@pytest.fixture(autouse=True)
def shared_programs(experiments, monkeypatch):
    """Lets a run reuse the programs of one like it: tracing them takes a second.

    Anything else that a test patches and that changes programs belongs in the key. A
    run in another process traces its own: `test_distributed.py`, tests/faults.
    """

    def shared(config, dataset):
        made = Experiment(config, dataset)
        if not isinstance(dataset, ImageDataset):
            return made
        key = (
            *(getattr(config, name) for name in _COMPILED),
            *(dataset.fingerprint, dataset.preprocessing, dataset.class_names),
            *(type(made.model), repr(made.model)),
            *(step.train_step, in_memory.loops_are_fast),
            *(own := config.own_code()).items(),
            config.initial_learning_rate if config.optimizer in own else None,
            config.seed
            if config.validation_fraction
            else None,  # It chooses the images.
        )
        alike = experiments.setdefault(key, {})
        numbers = config.seed, config.initial_learning_rate
        if numbers not in alike:
            if alike:
                made = with_programs_of(next(iter(alike.values())), made)
            alike[numbers] = made
            made.start = functools.partial(copied, functools.cache(made.start))
        return alike[numbers]

    def with_programs_of(other, made):
        one = copy.copy(other)
        del one.start
        for name in ("schedule", "_config", "_init_rng", "_run_rng"):
            setattr(one, name, getattr(made, name))
        vars(one)["_trainer"] = made._trainer
        made._trainer._chunk_program = other._trainer._chunk_program
        return one

    def copied(start):  # Training donates the state.
        return jax.tree.map(jnp.copy, start())

    monkeypatch.setattr("train.run.command.Experiment", shared)


@pytest.fixture(scope="package", autouse=True)
def quick_compilation(tmp_path_factory):
    """Compiles quickly: the programs are small and run only a few times."""
    with jax_settings(
        jax_disable_most_optimizations=True,
        # Runs that are compared with each other compile the same programs.
        jax_compilation_cache_dir=str(tmp_path_factory.mktemp("compiled")),
        jax_persistent_cache_min_compile_time_secs=0.3,
    ):
        yield
