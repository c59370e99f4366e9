"""Settings every test runs under: strict, deterministic, eight CPU devices."""

import gc
import importlib.metadata
import os
from pathlib import Path

# Set before JAX is imported. Tests compile far more than they compute: with fewer of
# XLA's optimizations they take a quarter of the time. `XLA_FLAGS= pytest` enables all.
flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
major, minor = importlib.metadata.version("jax").split(".")[:2]
if (int(major), int(minor)) < (0, 11):  # XLA aborts on an unknown flag
    flags += " --xla_cpu_use_fusion_emitters=false"
    flags += " --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("XLA_FLAGS", flags)

import jax
import pytest

_MOST_RESIDENT_BYTES = 2 << 30

# Before the first use of JAX: the multi-device tests need eight CPU devices.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_platforms", "cpu")
# A silent broadcast of a statistic against the wrong axis must not pass.
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_finish():
    """Freezes objects that live until the end, and collects garbage less often.

    Tracing makes millions of objects, few of them in cycles: at Python's thresholds
    the collector takes a fifteenth of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
    """Clears compiled programs before they take gigabytes, on systems with /proc."""
    yield
    pages = Path("/proc/self/statm")
    if pages.exists():
        resident = int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        if resident > _MOST_RESIDENT_BYTES:
            jax.clear_caches()


@pytest.fixture
def x64():
    """Runs a test with float64 enabled, for comparisons to 1e-12."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    """The data folder of tensorflow-datasets, which does not exist yet."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"
