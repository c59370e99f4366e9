"""Storage that fails during a run: a one-line error, and nothing is lost."""

import contextlib
import gc
import logging
import resource
import shutil
import sys
import types
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from train import cli, files
from train.data import cache
from train.errors import UserError
from train.run import orbax_output
from train.run.checkpoints import Checkpoints
from train.run.lock import RunLock
from train.run.metrics import MetricsWriter

from .results import without_times

pytestmark = pytest.mark.usefixtures("tiny_setting")


def train(*options):
    return cli.main(["--parallel", "jit", "--batch-size", "16", *options])


@contextlib.contextmanager
def full_disk(size=0):
    """No file may grow beyond a size, as on a full disk; Python ignores SIGXFSZ."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def one_error(capsys):
    """The error, which is one line besides the progress bar."""
    err = capsys.readouterr().err
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("Error: ")]
    return line


@pytest.fixture
def whole(tmp_path):
    """The metrics of an undisturbed run."""
    assert train("--epochs", "3", "--run-dir", str(tmp_path / "whole")) == 0
    return without_times(tmp_path / "whole")


@pytest.mark.parametrize("where", [Checkpoints, MetricsWriter])
def test_a_full_disk_is_an_error_and_the_run_can_be_resumed(
    tmp_path, monkeypatch, capsys, whole, where
):
    run = tmp_path / "run"
    name = "save" if where is Checkpoints else "write"
    write, calls = getattr(where, name), []

    def write_without_room(*given):
        calls.append(given)
        with full_disk() if len(calls) == 2 else contextlib.nullcontext():
            return write(*given)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(where, name, write_without_room)
        assert train("--epochs", "3", "--run-dir", str(run)) == 2
    error = one_error(capsys)
    assert str(run) in error
    assert "Free some space or restore access" in error
    assert train("--resume", str(run)) == 0
    assert without_times(run) == whole


@pytest.fixture
def unraisable(monkeypatch):
    """Errors that Python can only print, such as those of native threads."""
    found = []
    monkeypatch.setattr(sys, "unraisablehook", found.append)
    return found


def test_a_full_disk_is_named_with_the_file(tmp_path):
    with full_disk(), pytest.raises(OSError, match=f"'{tmp_path}/lock'"):
        RunLock().take(tmp_path)
    with full_disk(), pytest.raises(OSError, match=f"'{tmp_path}/cache'"):
        cache.write(tmp_path / "cache", {"a": np.ones(9)}, {})


@pytest.mark.parametrize("size", [800, 1500])
def test_an_error_of_orbax_is_printed_once(tmp_path, caplog, size):
    """The metadata do not fit, or only the arrays: some threads fail, others continue.

    Python can only print errors of those that continue, which fails the test.
    """
    arrays = {str(n): jnp.arange(400.0 + n) ** 0.5 for n in range(12)}
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    with full_disk(size), pytest.raises(UserError, match="cannot be written"):
        checkpoints.save(1, arrays, 0.5)
    checkpoints.close()
    gc.collect()  # Finds errors that were never retrieved.
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_late_error_of_a_native_thread_is_not_printed(caplog):
    with pytest.raises(UserError), orbax_output.silenced(UserError):
        raise UserError()
    temporary = "run/checkpoints/1.orbax-checkpoint-tmp"
    for message, folder in [
        ("exception was never retrieved", temporary),
        ("exception was never retrieved", "run/orbax-checkpoints"),
        ("exception was retrieved", temporary),
    ]:
        error = ValueError(f"Failed writing: {folder}")
        logging.getLogger("asyncio").error(message, exc_info=error)
    shown = [(r.getMessage(), str(r.exc_info[1])) for r in caplog.records]
    assert shown == [
        ("exception was never retrieved", "Failed writing: run/orbax-checkpoints"),
        ("exception was retrieved", f"Failed writing: {temporary}"),
    ]


def test_unrelated_output_is_kept(unraisable, caplog):
    def log_and_raise(error):
        logging.getLogger("absl").error(f"{orbax_output._OF_A_THREAD}: late")
        logging.getLogger("absl").error("another: other")
        logging.getLogger("asyncio").error("was never retrieved", exc_info=ValueError())
        if error is not None:
            raise error

    def logged():
        messages = [record.getMessage().rpartition(" ")[2] for record in caplog.records]
        caplog.clear()
        return messages

    def print_unraisable(call):
        try:
            call()
        except RuntimeError as error:
            trace = error.__traceback__
            sys.unraisablehook(
                types.SimpleNamespace(exc_value=error, exc_traceback=trace)
            )

    def fail():
        raise RuntimeError("Event loop is closed")

    hook = sys.unraisablehook
    with orbax_output.silenced(UserError):
        log_and_raise(None)
    assert logged() == ["other", "retrieved", "late"]
    assert sys.unraisablehook is hook
    with pytest.raises(TypeError), orbax_output.silenced(UserError):
        log_and_raise(TypeError())
    assert logged() == ["other", "retrieved", "late"]
    with pytest.raises(UserError), orbax_output.silenced(UserError):
        log_and_raise(UserError())
    assert logged() == ["other", "retrieved"]
    log_and_raise(None)  # A thread may still be writing.
    assert logged() == ["other", "retrieved"]
    with orbax_output.silenced(UserError):
        log_and_raise(None)
    assert logged() == ["other", "retrieved", "late"]
    with pytest.raises(UserError), orbax_output.silenced(UserError):
        log_and_raise(UserError())
    print_unraisable(fail)
    assert [str(error.exc_value) for error in unraisable] == ["Event loop is closed"]


@pytest.mark.parametrize(
    "name, warned",
    [
        ("async_serialize_from_host.<locals>.write_fragment", False),
        ("async_serialize_from_hosts", True),
        ("another", True),
    ],
)
@pytest.mark.parametrize("error", [UserError, TypeError])
def test_only_writes_of_orbax_that_never_began_are_not_warned_about(
    unraisable, name, warned, error
):
    async def write():
        pass

    write.__qualname__ = name
    with pytest.raises(error), orbax_output.silenced(UserError):
        coroutine = write()
        raise error()
    del coroutine  # Warnings are errors here, which a destructor cannot raise.
    assert [str(error.exc_value) for error in unraisable] == [
        f"coroutine '{name}' was never awaited"
    ] * warned


def test_a_warning_is_not_repeated_after_each_save():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for _ in range(3):
            with orbax_output.silenced(UserError):
                warnings.warn("deprecated")
    assert [str(warning.message) for warning in seen] == ["deprecated"]


def test_a_run_whose_folder_is_moved_ends_and_can_be_resumed(
    tmp_path, monkeypatch, capsys, whole
):
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


def test_a_file_that_cannot_be_written_is_named_and_unchanged(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with full_disk(), pytest.raises(OSError, match=f"'{path}'"):
        files.write(path, b"after")
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
