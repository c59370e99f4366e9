"""Temporary changes of JAX's settings."""

import contextlib

import jax


@contextlib.contextmanager
def jax_settings(**settings):
    """Changes these settings of `jax.config` within the context."""
    before = {name: jax.config.values[name] for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
