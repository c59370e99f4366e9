"""Imports run one way and without cycles, and folders stay small."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("insgd_optax", "models", "train", "benchmarks")
# Packages and folders of the application, and what each may import besides itself.
MAY_IMPORT = {
    "insgd_optax": set(),
    "models": set(),
    "train": {"insgd_optax", "models"},
    "train/command_line": set(),
    "train/data": set(),
    "train/training": {"train/data"},
    "train/run": {"train/training", "train/data", "train/command_line"},
    "train/inference": {"train/run", "train/training", "train/data"},
    "train/experiments": {"train/run", "train/training", "train/data"},
    "train/benchmark": {"train/training"},
}
MAY_IMPORT["benchmarks"] = {"train", *MAY_IMPORT}
# Files outside these folders, and the folders that they use: cli.py uses all. All
# folders but data and training may import config.py and run_config.py.
ABOVE = {
    "train/config.py": {"train/data", "train/training"},
    "train/run_config.py": {"train/training"},
    "train/cli.py": {name for name in MAY_IMPORT if name.startswith("train/")},
    "train/__main__.py": set(),
    "train/__init__.py": {"train/inference", "train/training", "train/data"},
}
MOST_FILES = 14


def sources(package):
    return sorted((ROOT / package).rglob("*.py"))


def imported(path, *, lazy):
    """The project's files that a file imports; if lazy, also within functions."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree) if lazy else top_level(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {file for name in names if (file := file_of(name))}
    return found - {path}


def top_level(node):
    """The nodes that run when a file is imported."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from top_level(child)


def file_of(name):
    """The file of a dotted name or of its parent; None if it is not the project's."""
    parts = name.split(".")
    if parts[0] not in PACKAGES:
        return None
    while parts:
        path = ROOT.joinpath(*parts)
        if path.with_suffix(".py").is_file():
            return path.with_suffix(".py")
        if (path / "__init__.py").is_file():
            return path / "__init__.py"
        parts.pop()
    return None


def folder_of(path):
    """The folder of the application, or the package, that a file is in."""
    parts = path.relative_to(ROOT).parts
    depth = 2 if parts[0] == "train" and len(parts) > 2 else 1
    return "/".join(parts[:depth])


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package):
    wrong = []
    for path in sources(package):
        here, name = folder_of(path), str(path.relative_to(ROOT))
        allowed = {here} | MAY_IMPORT[here] | ABOVE.get(name, set())
        if here.startswith("train/"):
            allowed |= {"train", *MAY_IMPORT["train"]}
        wrong += [
            f"{name} imports {file.relative_to(ROOT)}"
            for file in imported(path, lazy=True)
            if folder_of(file) not in allowed
        ]
    assert not wrong


@pytest.mark.parametrize("package", PACKAGES)
def test_there_are_no_import_cycles(package):
    graph = {path: imported(path, lazy=False) for path in sources(package)}
    # Raises a CycleError that shows the cycle.
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_data_and_training_import_no_file_above_them():
    for path in sources("train/data") + sources("train/training"):
        names = {str(file.relative_to(ROOT)) for file in imported(path, lazy=True)}
        assert not names & ABOVE.keys(), path


@pytest.mark.parametrize("package", ["models", "train", "benchmarks"])
def test_folders_stay_small(package):
    for folder in {path.parent for path in sources(package)}:
        files = len(list(folder.glob("*.py")))
        assert files <= MOST_FILES, f"{folder} has {files} files: use a subfolder"
