"""The examples in the docstrings run."""

import doctest
import importlib
import pkgutil

import pytest

import models

MODULES = [module.name for module in pkgutil.iter_modules(models.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_pass(name):
    module = importlib.import_module(f"models.{name}")
    assert doctest.testmod(module).failed == 0


def test_every_public_function_and_network_has_an_example():
    finder = doctest.DocTestFinder(exclude_empty=True)
    tests = [
        test
        for name in MODULES
        for test in finder.find(importlib.import_module(f"models.{name}"))
        if test.examples
    ]
    # Four public functions of the registry, and one example per network, except that
    # the two MobileNetV3 share one.
    assert len(tests) == 4 + len(models.names()) - 1
