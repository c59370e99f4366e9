"""Safe I/O in run folders, which may come from untrusted sources.

Writing never follows a symbolic link, and reading never blocks on a file that is not
regular.
"""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from train.errors import UserError

# Size limit; records and metrics are far smaller.
_MOST_BYTES = 1 << 30
_PREFIX = ".partial-"
# Errors of `os.link` on file systems without hard links.
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def read(path: Path) -> bytes:
    """Reads a regular file.

    Raises:
        OSError: if it cannot be read.
        UserError: if it is not a regular file, or far too large.
    """
    # A plain `open` would block on a pipe.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is not a regular file. Move it away.")
        if status.st_size > _MOST_BYTES:
            raise UserError(
                f"{path} has {status.st_size:,} bytes, more than any run writes. "
                "Move it away."
            )
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def write(path: Path, content: bytes) -> None:
    """Replaces a file atomically.

    A symbolic link of that name is replaced; its target is not changed.
    """
    partial = _write_partial(path, content)
    try:
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def create(path: Path, content: bytes) -> None:
    """Creates a file, atomically if the file system has hard links.

    Raises:
        FileExistsError: if it exists.
    """
    partial = _write_partial(path, content)
    try:
        try:
            os.link(partial, path, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            # O_EXCL then decides between two creators.
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            try:
                os.replace(partial, path)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
    finally:
        partial.unlink(missing_ok=True)


def open_to_append(path: Path, flags: int = os.O_WRONLY) -> IO[str]:
    """Opens a file for appending, creating it if necessary.

    Raises:
        OSError: if it cannot be opened, or is a symbolic link.
    """
    flags |= os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    mode = "a+" if flags & os.O_RDWR else "a"
    return os.fdopen(os.open(path, flags, 0o666), mode)


def is_partial(name: str) -> bool:
    """Returns whether a name is that of a partial file, left by a killed process."""
    return name.startswith(_PREFIX)


def _write_partial(path: Path, content: bytes) -> Path:
    partial = path.with_name(f"{_PREFIX}{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL  # Does not follow links.
    try:
        with naming(path), open(os.open(partial, flags, 0o666), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return partial


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Names a path in errors.

    They would otherwise name a partial file or, if the disk is full, no file at all.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
