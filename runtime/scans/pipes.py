"""Open a scan without waiting for ever: a named pipe or device must deliver its first byte within seconds."""

from __future__ import annotations

import os
import re
from io import FileIO

from mri_edge.errors import InputError

from .skipped import special

_WAIT_S = 10.0
# Streams that the caller has opened already: `<(...)` in a shell, standard input. No limit applies to their sender.
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
    kind = None if _DESCRIPTOR.fullmatch(path) else special(path)
    if kind is None:
        return FileIO(path)
    if kind == "socket":
        raise InputError(f"{path}: is a socket, not a picture", code="not_a_file")
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a blocking open would wait until a writer comes
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
            f"{path}: is a {kind} that nobody wrote to within {_WAIT_S:.0f} s",
            "Start its writer first, or pass the scan as /dev/stdin",
            code="not_a_file",
        )
