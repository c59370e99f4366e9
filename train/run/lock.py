"""The right to write into a run folder, which one process has at a time."""

import errno
import fcntl
import os
import socket
from pathlib import Path
from typing import IO, Self

from train import files
from train.errors import UserError

NAME = "lock"


class RunInProgress(UserError):
    """Another process has the run."""


class RunLock:
    """An exclusive lock on a run folder, within a context.

    The operating system frees it with the process, however that ends; a `lock` file
    left behind means nothing.
    """

    def __init__(self) -> None:
        self._file: IO[str] | None = None
        self._path: Path | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def take(self, path: Path) -> Path:
        """Locks a folder; nothing happens if that is done already.

        Args:
            path: the run folder, which exists.

        Returns:
            The folder.

        Raises:
            RunInProgress: if another process, or another lock, holds it.
            UserError: if the file system has no locks.
        """
        if self._file is not None:
            if self._path != path:
                raise ValueError(f"holds {self._path}, not {path}")
            return path
        # For NFS, which locks only what may be written.
        try:
            file = files.open_to_append(path / NAME, os.O_RDWR)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise UserError(
                f"{path / NAME} is a symbolic link, which no run makes. Remove it."
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            with file:
                raise RunInProgress(
                    f"The run {path} is in progress: {_holder(file)} has locked its "
                    f"file {NAME}. Wait until it has ended, or stop it with Ctrl-C or "
                    f"SIGTERM, which saves; then go on with it."
                ) from error
        except OSError as error:
            file.close()
            raise UserError(
                f"The file system of {path} has no locks ({error.strerror}), which "
                "keep two commands from writing one run. Give a --runs-dir or "
                "--run-dir on another one."
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._file, self._path = file, path
        return path

    def check(self) -> None:
        """Raises a UserError if the folder is not where it was locked any more."""
        if self._file is None or self._path is None:
            return
        mine = os.fstat(self._file.fileno())
        try:
            there = os.stat(self._path / NAME, follow_symlinks=False)
        except OSError:
            there = None
        if there is None or not os.path.samestat(mine, there):
            raise UserError(
                f"The run folder {self._path} was moved, removed or replaced while the "
                "run was in progress. Nothing was written in its place. Go on from its "
                "last checkpoint with --resume and the folder's new path."
            )


def _holder(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip() or "another process"
