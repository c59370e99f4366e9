"""Reading and writing files of a run folder that others may have prepared.

A run folder may come from somebody else. Nothing here follows a symbolic link when it
writes, nor waits for what is no regular file when it reads.
"""

import os
import secrets
import stat
from pathlib import Path
from typing import IO

from train.errors import UserError

# Of a record or the metrics; both are far smaller.
_MOST_BYTES = 1 << 30
_PREFIX = ".partial-"


def read(path: Path) -> bytes:
    """Reads a regular file.

    Raises:
        OSError: if it cannot be read.
        UserError: if it is something else, such as a pipe, or far too large.
    """
    # A pipe would keep an ordinary open waiting.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is no regular file. Move it away.")
        if status.st_size > _MOST_BYTES:
            raise UserError(
                f"{path} has {status.st_size:,} bytes, which no run writes. Move it "
                "away."
            )
        return file.read()


def write(path: Path, content: bytes) -> None:
    """Replaces a file at once: a reader, or a process killed here, sees old or new.

    A symbolic link of that name is replaced; what it points to is not touched.
    """
    partial = _write_partial(path, content)
    try:
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def create(path: Path, content: bytes) -> None:
    """Writes a file that does not exist yet, whole or not at all.

    Raises:
        FileExistsError: if it does exist.
    """
    partial = _write_partial(path, content)
    try:
        os.link(partial, path, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:
        # A file system without hard links: then two creators have to be told apart.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def open_to_append(path: Path, flags: int = os.O_WRONLY) -> IO[str]:
    """Opens a file to write at its end, also if it is a new one.

    Raises:
        OSError: if it cannot be opened, or is a symbolic link.
    """
    flags |= os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    mode = "a+" if flags & os.O_RDWR else "a"
    return os.fdopen(os.open(path, flags, 0o666), mode)


def is_partial(name: str) -> bool:
    """Whether a process that was killed left a file of this name."""
    return name.startswith(_PREFIX)


def _write_partial(path: Path, content: bytes) -> Path:
    partial = path.with_name(f"{_PREFIX}{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL  # Which follows no link either.
    try:
        with open(os.open(partial, flags, 0o666), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            # That a disk is full is said without the name of the file.
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    return partial
