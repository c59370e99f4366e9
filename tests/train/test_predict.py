"""`python -m train predict`: classes of image files."""

import csv
import io
import json
import os

import numpy as np
import pytest
from PIL import Image

import train
from train import cli

pytestmark = pytest.mark.usefixtures("tiny_setting")


@pytest.fixture
def folder(tmp_path, small_dataset):
    """Five images: in gray, in color, too wide, and in a subfolder."""
    root = tmp_path / "images"
    (root / "more/.hidden").mkdir(parents=True)
    images = [Image.fromarray(pixels[..., 0]) for pixels in small_dataset.test.images]
    images[0].save(root / "0.png")
    images[1].convert("RGB").save(root / "1.PNG")
    wide = np.pad(small_dataset.test.images[2, ..., 0], ((0, 0), (2, 2)))
    Image.fromarray(wide).save(root / "2.bmp")
    images[3].save(root / "more/3.png")
    images[4].save(root / "4.png")
    images[4].save(root / "more/.hidden/4.png")
    (root / "notes.txt").write_text("No image.")
    return root


def predict(capsys, *arguments):
    """The status, the output and the errors."""
    status = cli.main(["predict", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_each_image_of_a_folder_gets_its_class(
    run_dir, folder, small_dataset, tmp_path, capsys
):
    run = train.load_run(run_dir)
    order = [0, 1, 2, 4, 3]  # The files of a folder come before its subfolders.
    files = ["0.png", "1.PNG", "2.bmp", "4.png", "more/3.png"]
    probabilities = run.predict(small_dataset.test.images)[order]

    # Batches of two, of which the last is padded.
    status, out, err = predict(capsys, run_dir, folder, "--batch-size", 2)
    assert (status, "Warning" in err) == (0, False)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["file"] for row in rows] == [str(folder / name) for name in files]
    for row, expected in zip(rows, probabilities, strict=True):
        assert row["class"] == run.class_names[expected.argmax()]
        assert float(row["probability"]) == pytest.approx(expected.max(), abs=1e-5)

    output = tmp_path / "out.jsonl"
    options = ["--format", "jsonl", "--top", "2", "--output", output]
    status, out, err = predict(capsys, run_dir, folder / "0.png", *options)
    assert (status, out, err) == (0, "", "")
    (found,) = map(json.loads, output.read_text().splitlines())
    best = np.argsort(-probabilities[0])[:2]
    assert found["class"] == found["top"][0]["class"] == run.class_names[best[0]]
    assert found["top"][1]["class"] == run.class_names[best[1]]
    assert [each["probability"] for each in found["top"]] == pytest.approx(
        probabilities[0, best], abs=1e-5
    )
    status, out, _ = predict(capsys, run_dir, folder / "0.png", "--top", "9")
    assert out.splitlines()[0] == "file,rank,class,probability"
    assert [line.split(",")[1] for line in out.splitlines()[1:]] == ["1", "2", "3"]


def test_files_that_are_not_images_are_named(run_dir, folder, tmp_path, capsys):
    broken = folder / "3.png"
    broken.write_bytes((folder / "0.png").read_bytes()[:40])
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments, words in (
        ([folder], f"{broken}: not an image that can be decoded: "),
        ([folder / "notes.txt"], "notes.txt: not an image that can be decoded: "),
        ([empty], f"{empty} holds no images. Image files end in .bmp, "),
        ([tmp_path / "nowhere"], "nowhere does not exist. Give image files or"),
    ):
        status, _, err = predict(capsys, run_dir, *arguments)
        assert status == 2
        assert words in err
        assert len(err.splitlines()) == 1
        assert "<_io." not in err
    for output in (tmp_path, tmp_path / "nowhere/out.csv"):
        status, _, err = predict(capsys, run_dir, folder, "--output", output)
        assert (status, err.count("\n")) == (2, 1)
        assert f"--output {output} cannot be written" in err
    output = tmp_path / "out.csv"
    options = ["--skip-corrupt-images", "--output", output]
    status, _, err = predict(capsys, run_dir, folder, *options)
    assert status == 0
    *notes, last = err.splitlines()
    assert notes == [
        (
            "Note: 1 image resized and center-cropped to 8x8 pixels, the size of the "
            "network's images."
        ),
        f"Skipped 1 corrupt image: {broken}",
    ]
    assert last.startswith("Note: skipped 1 file in folders: the names of images end")
    assert len(output.read_text().splitlines()) == 1 + 5


def test_a_pipe_in_a_folder_is_left_out_and_names_may_be_any_bytes(
    run_dir, tmp_path, folder, capsys
):
    given = tmp_path / "given"
    given.mkdir()
    os.mkfifo(given / "pipe.png")
    (folder / "0.png").rename(os.fsdecode(os.fsencode(given) + b"/\xff.png"))
    output = tmp_path / "out.csv"
    status, _, err = predict(capsys, run_dir, given, "--output", output)
    assert status == 0
    assert "Note: skipped 1 file in folders" in err
    _, line = output.read_bytes().splitlines()
    assert line.startswith(os.fsencode(given) + b"/\xff.png,")
