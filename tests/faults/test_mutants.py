"""The list of mutants matches the code. All of them take a quarter of an hour."""

import pytest

from .mutants import MUTANTS, ROOT


@pytest.mark.parametrize("name", MUTANTS)
def test_the_text_and_the_test_files_of_each_mutant_exist(name):
    text = (ROOT / f"{name}.py").read_text()
    folder = ROOT / "tests" / name.partition("/")[0]
    for before, after, tests in MUTANTS[name]:
        assert before in text and before != after
        for file in tests.partition(" -k ")[0].split():
            assert (folder / f"test_{file}.py").exists(), file
