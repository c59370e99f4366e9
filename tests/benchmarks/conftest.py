"""Settings for the tests of the benchmarks."""

import pytest

from tests.jax_settings import jax_settings


@pytest.fixture(scope="package", autouse=True)
def quick_compilation():
    """Small programs that run a few times: compiling them is what takes the time."""
    with jax_settings(jax_disable_most_optimizations=True):
        yield
