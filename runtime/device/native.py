"""Work around native side effects: messages on stderr, and memory that glibc keeps after it was freed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache

# malloc.h of glibc, and the limits that its own sliding threshold ends at on 64 bits (malloc.c).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 << 20


@contextmanager
def return_freed_memory() -> Iterator[None]:
    """Within the block what is freed goes back to the system, under glibc; for this process, so for programs alone.

    An engine that opens a model frees as much as it keeps, piece by piece: glibc soon holds such pieces
    for the next that asks, and nobody does. A fifth of the peak memory of one prediction goes by that.
    Afterwards large pieces are held again, so that arrays are not made of new pages each time.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library, or Windows
        yield
        return
    mallopt(_M_MMAP_THRESHOLD, 2 << 20)
    try:
        yield
    finally:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, 2 * _LARGEST_MMAP_THRESHOLD)


def trim_memory() -> None:
    """Return to the system what glibc keeps in each thread's arena after a large picture was freed there."""
    import ctypes

    with suppress(OSError, AttributeError, TypeError):  # another C library, or Windows
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def silence_stderr() -> Iterator[None]:
    """Drop what native code writes to file descriptor 2; failures arrive as exceptions all the same.

    TensorFlow's C++ part and XNNPACK write there, past ``sys.stderr`` and before any log level is heard.
    """
    import tempfile

    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


@lru_cache(maxsize=1)
def silence_libtiff() -> None:
    """Drop the messages that Pillow's libtiff prints to file descriptor 2; failures arrive as exceptions all the same.

    Its handler is switched off, since redirecting the descriptor would lose what other threads write meanwhile. Where
    libtiff is linked in such a way that its functions have no names, as on Windows, the messages stay.
    """
    import ctypes

    from PIL import _imaging

    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(_imaging.__file__)
        library.TIFFSetErrorHandler(None)
        library.TIFFSetErrorHandlerExt(None)
