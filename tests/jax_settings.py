"""JAX's settings, changed for a while."""

import contextlib

import jax


@contextlib.contextmanager
def jax_settings(**settings):
    """Runs what is inside with these settings of `jax.config`."""
    before = {name: jax.config.values[name] for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
