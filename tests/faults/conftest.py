"""A small run to damage, and the number of cases."""

import os
import shutil

import pytest

from tests.jax_settings import jax_settings
from tests.train.stripes import stripes
from tests.train.tiny_cnn import TinyCNN
from train import cli


@pytest.fixture(scope="package")
def cases():
    """Multiplies a number of cases by FAULTS_SHARE, by default a twentieth."""
    share = float(os.environ.get("FAULTS_SHARE", "0.05"))
    return lambda number: max(1, round(share * number))


@pytest.fixture
def report(capsys):
    """Prints a line of counts, whether or not pytest captures output."""

    def print_line(line):
        with capsys.disabled():
            print(f"\n  {line}", end="")

    return print_line


@pytest.fixture(scope="package", autouse=True)
def tiny_runs(tmp_path_factory):
    """Commands train a tiny network on small data, compiled once."""
    cache = str(tmp_path_factory.mktemp("compiled"))
    settings = jax_settings(
        jax_disable_most_optimizations=True,
        jax_compilation_cache_dir=cache,
        jax_persistent_cache_min_compile_time_secs=0.0,
    )
    with settings, pytest.MonkeyPatch.context() as patch:
        # For the processes that tests start.
        patch.setenv("JAX_COMPILATION_CACHE_DIR", cache)
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        patch.setattr("train.data.digits.load", stripes)
        patch.setattr("models.create", lambda name, **options: TinyCNN(**options))
        yield


@pytest.fixture(scope="package")
def finished_run(tiny_runs, tmp_path_factory):
    """The folder of a run of four epochs; tests damage copies of it."""
    path = tmp_path_factory.mktemp("runs") / "run"
    options = ["--parallel", "jit", "--batch-size", "16", "--epochs", "4"]
    assert cli.main([*options, "--run-dir", str(path)]) == 0
    return path


@pytest.fixture
def copy(finished_run, tmp_path):
    """Makes a fresh copy of the finished run, always in the same place."""

    def make():
        target = tmp_path / "run"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(finished_run, target)
        return target

    return make
