"""One program at a time in a folder: a lock that the system lets go of, however the program ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mri_edge.errors import OutputError, UsageError

LOCK = ".mri-edge.lock"


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold a folder's lock while the block runs; yields False where its file system has no locks.

    The file stays behind: removing it would let two programs hold two files of one name.

    Raises
    ------
    UsageError
        Another program holds it.
    OutputError
        The lock file cannot be made.
    """
    path = folder / LOCK
    try:
        file = open(path, "a+b", buffering=0)  # noqa: SIM115 (closed below)
    except OSError as error:
        raise OutputError(f"{path}: cannot write ({error.strerror})", "Name a folder that you may write to") from error
    with file:
        try:
            is_locked = lock(file)
        except BlockingIOError as error:
            raise UsageError(
                f"{folder}: another mri-edge works in this folder{_holder(file)}", "Stop that one, or name another"
            ) from error
        if is_locked:
            with suppress(OSError):  # a full disk: the number is for people alone
                file.truncate(0)
                file.write(b"%d\n" % os.getpid())
        yield is_locked


def lock(file: BinaryIO) -> bool:
    """Take a file's lock until it is closed; False where there are none. Raises BlockingIOError when it is taken."""
    if sys.platform == "win32":
        import msvcrt

        # A byte far behind the text: a locked byte cannot be read by others.
        file.seek(1 << 30)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError from error
        finally:
            file.seek(0)
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # some network shares
        return False
    return True


def _holder(file: BinaryIO) -> str:
    try:
        file.seek(0)
        number = file.read(20).split()
        return f" (process {int(number[0])})" if number else ""
    except (OSError, ValueError):
        return ""
