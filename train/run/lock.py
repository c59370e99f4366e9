"""Locks a run folder, so that only one process writes to it."""

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
    """Another process has locked the run."""


class RunLock:
    """Context manager for an exclusive lock on a run folder.

    The operating system releases it when the process ends for any reason. A remaining
    `lock` file has no meaning.
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
        """Locks a folder, unless this lock already holds it.

        Args:
            path: an existing run folder.

        Returns:
            The folder.

        Raises:
            RunInProgress: if another process, or another lock, holds it.
            UserError: if the file system does not support locks.
        """
        if self._file is not None:
            if self._path != path:
                raise ValueError(f"holds {self._path}, not {path}")
            return path
        # NFS locks only files opened for writing.
        try:
            file = files.open_to_append(path / NAME, os.O_RDWR)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise UserError(
                f"{path / NAME} is a symbolic link, which no run creates. Remove it."
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            with file:
                raise RunInProgress(
                    f"The run {path} is in progress: {_holder(file)} has locked it. "
                    "Wait for it to finish, or stop it with Ctrl-C or SIGTERM (it "
                    "saves a checkpoint), then resume it."
                ) from error
        except OSError as error:
            file.close()
            raise UserError(
                f"The file system of {path} does not support locks ({error.strerror}), "
                "which keep two commands from writing to the same run. Use a "
                "--runs-dir or --run-dir on another file system."
            ) from error
        holder = f"process {os.getpid()} on {socket.gethostname()}\n"
        try:
            with files.naming(path / NAME):
                file.truncate(0)
                # Unbuffered: closing a buffered file would retry a failed write.
                os.write(file.fileno(), holder.encode())
        except OSError:
            file.close()
            raise
        self._file, self._path = file, path
        return path

    def check(self) -> None:
        """Raises a UserError if the locked folder was moved or replaced."""
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
                "run was in progress. Nothing was written in its place. To resume from "
                "the last checkpoint, pass --resume with the folder's new path."
            )


def _holder(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip() or "another process"
