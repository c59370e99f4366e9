"""Detects changed files without reading them."""

import os


def of(status: os.stat_result) -> tuple[int, ...]:
    """Returns a state that changes when a file is written, replaced or renamed.

    Size and modification time do not suffice, because copying and unpacking preserve
    them. Programs cannot set the change time, and a moved file keeps its inode.
    """
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
