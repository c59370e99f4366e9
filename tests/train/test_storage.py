"""Storage that fails while a run is in progress: one line, and nothing is lost."""

import contextlib
import resource
import shutil

import pytest

from train import cli, files
from train.run.checkpoints import Checkpoints
from train.run.metrics import MetricsWriter

from .results import without_times

pytestmark = pytest.mark.usefixtures("tiny_setting")


def train(*options):
    return cli.main(["--parallel", "jit", "--batch-size", "16", *options])


@contextlib.contextmanager
def no_room(size=0):
    """No file may grow beyond a size, as on a full disk; Python ignores SIGXFSZ."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def one_error(capsys):
    """What was said, which is one line beside the progress bar."""
    err = capsys.readouterr().err
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("Error: ")]
    return line


@pytest.fixture
def whole(tmp_path):
    """The metrics of a run that nothing happened to."""
    assert train("--epochs", "3", "--run-dir", str(tmp_path / "whole")) == 0
    return without_times(tmp_path / "whole")


@pytest.mark.parametrize("where", [Checkpoints, MetricsWriter])
def test_a_full_disk(tmp_path, monkeypatch, capsys, whole, where):
    run = tmp_path / "run"
    name = "save" if where is Checkpoints else "write"
    write, calls = getattr(where, name), []

    def write_without_room(*given):
        calls.append(given)
        with no_room() if len(calls) == 2 else contextlib.nullcontext():
            return write(*given)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(where, name, write_without_room)
        assert train("--epochs", "3", "--run-dir", str(run)) == 2
    said = one_error(capsys)
    assert str(run) in said
    assert "Free some space or restore access" in said
    assert train("--resume", str(run)) == 0
    assert without_times(run) == whole


def test_a_folder_that_is_moved_while_running(tmp_path, monkeypatch, capsys, whole):
    run, moved = tmp_path / "run", tmp_path / "moved"
    save = Checkpoints.save

    def save_and_move(self, step, *given):
        save(self, step, *given)
        if step == 3:
            shutil.move(run, moved)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_move)
        assert train("--epochs", "3", "--run-dir", str(run)) == 2
    assert f"The run folder {run} was moved, removed or replaced" in one_error(capsys)
    assert not run.exists()
    assert train("--resume", str(moved)) == 0
    assert without_times(moved) == whole


def test_a_file_that_cannot_be_written_is_named_and_left_as_it_was(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with no_room(), pytest.raises(OSError, match=f"'{path}'"):
        files.write(path, b"after")
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
