"""Settings for the tests of the benchmarks."""

import pytest

from tests.jax_settings import jax_settings


@pytest.fixture(scope="package", autouse=True)
def quick_compilation():
    """Compiles quickly: the programs are small and run only a few times."""
    with jax_settings(jax_disable_most_optimizations=True):
        yield
