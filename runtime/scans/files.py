"""Open a scan file without blocking forever, and distinguish errors of the system from errors of the scan."""

from __future__ import annotations

import errno
import os
import re
import stat
from io import FileIO

from mri_edge.errors import InputError

_WAIT_S = 10.0
# Streams that the caller has already opened: `<(...)` in a shell, standard input. Their writers have no time limit.
_DESCRIPTOR = re.compile(r"/dev/(stdin|fd/\d+)|/proc/(self|\d+)/fd/\d+")


def open_scan(path: str) -> FileIO:
    """Open a file for reading, unbuffered.

    Raises
    ------
    InputError
        ``"not_a_file"``: a socket, or a pipe or device that delivers nothing.
    OSError
        As ``open`` does.
    """
    kind = None if _DESCRIPTOR.fullmatch(path) else special_file_kind(path)
    if kind is None:
        return FileIO(path)
    if kind == "socket":
        raise InputError(f"{path}: is a socket, not a picture", code="not_a_file")
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a blocking open would wait for a writer
    try:
        _await_data(number, path, kind)
        os.set_blocking(number, True)
        return FileIO(number)
    except BaseException:
        os.close(number)
        raise


def _await_data(number: int, path: str, kind: str) -> None:
    from select import POLLIN, poll

    poller = poll()
    poller.register(number, POLLIN)
    if not poller.poll(_WAIT_S * 1000):
        raise InputError(
            f"{path}: no data arrived on this {kind} within {_WAIT_S:.0f} s",
            "Start its writer first, or pass the scan as /dev/stdin",
            code="not_a_file",
        )


def special_file_kind(path: str) -> str | None:
    """Return "pipe", "socket" or "device" for a path that is neither a file nor a folder, else None."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 (a Path takes four times as long, for each file of a folder)
    except (OSError, ValueError):
        return None
    if stat.S_ISFIFO(mode):
        return "pipe"
    if stat.S_ISSOCK(mode):
        return "socket"
    return "device" if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else None


def out_of_memory(name: str) -> InputError:
    """Return the error for a scan that does not fit in memory. Raise it from the MemoryError: see ``is_transient``."""
    hint = "Free some memory and try again, or make the picture smaller"
    return InputError(f"{name}: cannot read (out of memory)", hint, code="out_of_memory")


def is_transient(error: BaseException | None) -> bool:
    """Whether an error concerns memory or disks at this moment, and not the scan itself.

    Pillow's own OSErrors have no number. A damaged picture may refer to a position outside the file, which causes
    EINVAL. A file that is gone (ENOENT) does not come back.
    """
    if isinstance(error, OSError):
        return error.errno not in (None, errno.EINVAL, errno.ENOENT)
    return isinstance(error, MemoryError)
