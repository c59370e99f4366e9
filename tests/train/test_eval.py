"""`python -m train eval`: class by class, and on other data."""

import json

import numpy as np
import pytest
from PIL import Image

import train
from train import cli
from train.inference import confusion
from train.run import metrics

pytestmark = pytest.mark.usefixtures("tiny_setting")

OWN = "tests.train.own_things"


def cells(line):
    """The cells of a row of a Markdown table."""
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_accuracy_and_confusions_of_each_class_are_reported(
    run_dir, small_dataset, tmp_path, capsys
):
    output = tmp_path / "made/here"
    assert cli.main(["eval", str(run_dir), "--output-dir", str(output)]) == 0

    out = capsys.readouterr().out
    images, labels = small_dataset.test
    predicted = train.load_run(run_dir).predict(images).argmax(-1)
    counts = np.zeros((3, 3), int)
    np.add.at(counts, (labels, predicted), 1)
    lines = out.splitlines()
    assert "top-5" not in out  # There are three classes.
    assert cells(lines[2]) == ["true \\ predicted", "a", "b", "c", "accuracy"]
    for line, name, row, right in zip(lines[4:7], "abc", counts, np.diag(counts)):
        share = f"{100 * right / row.sum():.2f} %"
        assert cells(line) == [name, *map(str, row), share]
    found = json.loads((output / "eval.json").read_text())
    row = metrics.read(run_dir / "metrics.jsonl")[-1]
    assert found["confusion"] == counts.tolist()
    assert found["top1"] == pytest.approx(row["test_top1"])
    assert found["loss"] == pytest.approx(row["test_loss"], rel=1e-5)
    assert found["classes"][1]["name"] == "b"
    assert found["classes"][1]["images"] == (labels == 1).sum()
    assert (found["step"], found["dataset"]["name"]) == (6, "stripes")
    assert found["environment"]["versions"]["jax"]
    with Image.open(output / "confusion.png") as image:
        assert image.size == (900, 765)
    assert f"In {output}: eval.json, confusion.png" in lines[-1]


def test_other_data_are_normalized_as_in_training(run_dir, capsys):
    def scores(*options):
        assert cli.main(["eval", str(run_dir), *options]) == 0
        line, _, *table = capsys.readouterr().out.splitlines()
        return line.partition(": ")[::2], table

    (where, own), own_table = scores()
    (elsewhere, other), table = scores("--dataset", f"{OWN}:otherwise_normalized")
    assert where == "latest checkpoint, step 6, on 20 test images"
    assert elsewhere == "latest checkpoint, step 6, on 20 test images of reversed"
    assert (own, own_table) == (other, table)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("two_labels", "has 2 classes, but the run was trained on 3."),
        (
            "renamed",
            "class 1 is 'c', was 'b', class 2 is 'b', was 'c'. Use a dataset with",
        ),
        (
            "larger_images",
            "images of 8x16 pixels in 1 channel, but the run was tr",
        ),
    ],
)
def test_data_that_do_not_fit_are_an_error(run_dir, capsys, name, words):
    assert cli.main(["eval", str(run_dir), "--dataset", f"{OWN}:{name}"]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert len(err.splitlines()) == 1


def test_the_cache_folder_may_differ_from_the_run_s(run_dir, tmp_path, capsys):
    for name in "abc":
        for split in ("train", "test"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(folder / "0.png")
    cache = tmp_path / "cache"
    other = ("--dataset", f"folder:{tmp_path / 'images'}", "--cache-dir", str(cache))
    # In color, unlike the run's images: refused once they are decoded.
    assert cli.main(["eval", str(run_dir), *other]) == 2
    assert "in 3 channels" in capsys.readouterr().err
    assert any(cache.iterdir())


def test_the_worst_of_many_classes_are_listed():
    names = [f"class {number}" for number in range(30)]
    counts = np.diag(np.arange(30))
    counts[7, 3], counts[29, 28] = 7, 87
    text = confusion.describe(counts, names)
    assert "The 10 classes with the lowest accuracy, of 30 (--output-dir writes" in text
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()
    ]
    assert rows[4] == ["class 29", "116", "25.00 %", "class 28 (87)"]
    assert rows[5] == ["class 7", "14", "50.00 %", "class 3 (7)"]
    assert rows[6] == ["class 1", "1", "100.00 %", ""]  # Class 0 has no images.
    assert len(rows) == 14
    assert confusion.by_class(counts, names)[0]["accuracy"] is None
