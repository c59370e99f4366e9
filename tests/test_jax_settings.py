"""Settings that a test changes are restored afterwards."""

import jax
import pytest

from tests.jax_settings import jax_settings


def test_settings_are_restored_after_an_exception():
    before = jax.config.values["jax_enable_x64"]
    with pytest.raises(RuntimeError), jax_settings(jax_enable_x64=not before):
        assert jax.config.values["jax_enable_x64"] != before
        raise RuntimeError
    assert jax.config.values["jax_enable_x64"] == before
