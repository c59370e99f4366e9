"""Whether a file may hold something else than before, without reading it."""

import os


def of(status: os.stat_result) -> tuple[int, ...]:
    """What changes when a file is written, replaced or renamed.

    Size and modification time are not enough: copying and unpacking keep them. The
    change time cannot be set by a program, and a file moved to another's place keeps
    its inode.
    """
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
