"""Lock files and folders. The system releases a lock when its program ends, even by a crash or a kill."""

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
    """Lock a folder for one program while the block runs. Yields False if its file system has no locks.

    The lock file is not removed afterwards: otherwise two programs could lock two different files of this name.

    Raises
    ------
    UsageError
        Another program has locked the folder.
    OutputError
        The lock file cannot be created.
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
                f"{folder}: another mri-edge uses this folder{_owner(file)}", "Stop it, or name another folder"
            ) from error
        if is_locked:
            with suppress(OSError):  # on a full disk the process number, which only informs users, is missing
                file.truncate(0)
                file.write(b"%d\n" % os.getpid())
        yield is_locked


def lock(file: BinaryIO | int) -> bool:
    """Lock an open file, or on POSIX the descriptor of a folder, until it is closed.

    Returns False if the file system has no locks. Raises BlockingIOError if another program has locked it.
    """
    if sys.platform == "win32":
        import msvcrt

        assert not isinstance(file, int)  # noqa: S101 (Windows cannot open folders)
        # Lock a byte far behind the text, because other programs cannot read a locked byte.
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


def _owner(file: BinaryIO) -> str:
    try:
        file.seek(0)
        number = file.read(20).split()
        return f" (process {int(number[0])})" if number else ""
    except (OSError, ValueError):
        return ""
