"""Settings every test runs under: strict, deterministic, eight CPU devices."""

import jax
import pytest

# Before the first use of JAX: the multi-device tests need eight CPU devices.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_platforms", "cpu")
# A silent broadcast of a statistic against the wrong axis must not pass.
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """Runs a test with float64 enabled, for comparisons to 1e-12."""
    with jax.enable_x64(True):
        yield
