"""Each script of examples/ starts as its docstring says, and trains."""

import json
import re
import runpy
import sys
from pathlib import Path

import matplotlib
import nbformat
import numpy as np
import pytest
from matplotlib import pyplot as plt
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(monkeypatch, name, *options):
    """Runs an example as a script, in this process."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *options])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_help_states_each_default(monkeypatch, capsys, name):
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        run(monkeypatch, name, "--help")
    _, *options = capsys.readouterr().out.split("\n  --")
    assert options
    for option in options:
        assert "(default: " in option or option.startswith("tiny")
        assert "None" not in option


@pytest.mark.parametrize(
    "optimizer", ["adamw", "adamw+covariance", "lms_newton", "muon", "muon+whitened"]
)
def test_char_transformer_learns(monkeypatch, capsys, tmp_path, optimizer):
    path = tmp_path / "result.json"
    options = ("--optimizer", optimizer, "--steps", "12", "--tiny", "--json", str(path))
    run(monkeypatch, "char_transformer", *options)
    result = json.loads(path.read_text())
    assert result["test_losses"]["12"] < 4.5  # log 128 = 4.85
    assert "step 12: test loss" in capsys.readouterr().out


def test_linen_image_folder_learns(monkeypatch, capsys, tmp_path):
    rng = np.random.default_rng(0)
    for split, number in (("train", 32), ("test", 5)):
        for label, name in enumerate(("dark", "light")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(number):
                pixels = rng.integers(100, size=(9, 8, 3)) + 150 * label
                path = tmp_path / split / name / f"{i}.png"
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    options = ("--size", "8", "--epochs", "6", "--batch-size", "16", "--tiny")
    run(monkeypatch, "linen_image_folder", str(tmp_path), *options)
    printed = capsys.readouterr().out
    assert "epoch 6: loss" in printed and "test accuracy 100.0%" in printed
    assert "Conv_0/kernel: learning rate x 0." in printed


def accuracies(printed):
    return [float(number) for number in re.findall(r"([\d.]+)%", printed)]


def test_nnx_digits_learns(monkeypatch, capsys):
    run(monkeypatch, "nnx_digits", "--steps", "100", "--tiny")
    printed = capsys.readouterr().out
    assert accuracies(printed)[-1] > 40
    assert "conv2/kernel: condition number of the damped covariance" in printed


def test_nnx_lora_learns(monkeypatch, capsys):
    run(monkeypatch, "nnx_lora", "--steps", "150", "--width", "64")
    trained, before, after = accuracies(capsys.readouterr().out)
    assert trained > 85
    assert before < 30 < after - 20


def test_sharded_mesh_learns(monkeypatch, capsys):
    run(monkeypatch, "sharded_mesh", "--steps", "60", "--width", "64")
    printed = capsys.readouterr().out
    first, last = (float(loss) for loss in re.findall(r"loss ([\d.]+)", printed))
    assert last < first
    assert "mesh {'data': 4, 'model': 2}" in printed
    assert "each device holds (64, 32)" in printed


def test_accumulation_mixed_precision_learns(monkeypatch, capsys):
    run(monkeypatch, "accumulation_mixed_precision", "--steps", "240", "--tiny")
    printed = capsys.readouterr().out
    # 60 without micro-batches skipped because they overflow at the first loss scale.
    assert 55 <= int(re.findall(r"updates (\d+), loss scale", printed)[-1]) <= 60
    assert accuracies(printed)[-1] > 70


def test_partition_weight_decay_learns(monkeypatch, capsys):
    run(monkeypatch, "partition_weight_decay", "--steps", "60", "--width", "32")
    assert accuracies(capsys.readouterr().out)[-1] > 80


def test_the_cells_of_the_notebook_run_and_draw_its_figures(tmp_path):
    """The cells are plain Python, and run here as a script without a kernel."""
    notebook = nbformat.read(EXAMPLES / "inputs_of_a_network.ipynb", as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in cells:
        pictures = [output for output in cell.outputs if "data" in output]
        assert bool(pictures) == ("plt.subplots" in cell.source)
        assert not pictures or cell.metadata.mystnb.image.alt
    script = tmp_path / "cells.py"
    script.write_text("\n".join(cell.source for cell in cells))
    script.write_text(script.read_text().replace("STEPS = 300", "STEPS = 20"))
    matplotlib.use("Agg")
    with plt.rc_context():
        runpy.run_path(str(script))
        figures = [plt.figure(number) for number in plt.get_fignums()]
        assert len(figures) == sum("plt.subplots" in cell.source for cell in cells)
        for figure in figures:
            figure.canvas.draw()
        plt.close("all")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.stem)
def test_an_example_is_short_and_says_how_to_start_it(path):
    text = path.read_text()
    assert len(text.splitlines()) < 150
    assert re.search(rf"^    python examples/{path.name}", text, re.MULTILINE)
