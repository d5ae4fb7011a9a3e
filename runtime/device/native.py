"""Work around side effects of the system: messages on stderr, memory that glibc keeps, needless garbage collections.

This is the only module that calls glibc's malloc (tested with 2.36) and Pillow's libtiff through ctypes.
Where a function does not exist, the side effect remains.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache

# Constants of glibc: malloc.h, and the upper limit of its dynamic threshold on 64 bits (malloc.c).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST_MMAP_THRESHOLD = 32 << 20


@contextmanager
def return_freed_memory() -> Iterator[None]:
    """Make glibc return freed memory to the system within the block. This affects the whole process.

    While an engine opens a model, it frees about as much memory as it keeps, and glibc would keep the freed memory for
    later. Returning it lowers the peak of one prediction by a fifth. After the block large pieces are kept again, so
    that arrays do not need new pages each time.
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


@contextmanager
def paused_collection() -> Iterator[None]:
    """Pause Python's garbage collector while modules are imported, when it finds nothing.

    What exists at the end is never searched again. Otherwise the first collection afterwards would do all of the work.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def trim_memory() -> None:
    """Return the memory to the system that glibc keeps in each thread's arena after a large picture was freed."""
    import ctypes

    with suppress(OSError, AttributeError, TypeError):  # another C library, or Windows
        ctypes.CDLL(None).malloc_trim(0)


def limit_arenas(number: int) -> None:
    """Let all threads take their memory from so many arenas. Call it before the threads start.

    glibc gives eight arenas to each core, and each keeps some of what was freed in it. In a service with many short
    threads this looks like a leak.
    """
    import ctypes

    with suppress(OSError, AttributeError, TypeError):  # another C library, or Windows
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, number)


@contextmanager
def silence_stderr() -> Iterator[None]:
    """Discard what native code writes to file descriptor 2. Failures are still raised as exceptions.

    TensorFlow's C++ code and XNNPACK write there directly, before log levels apply.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    with open(os.devnull, "wb") as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


@lru_cache(maxsize=1)
def silence_libtiff() -> None:
    """Discard messages that Pillow's libtiff prints to file descriptor 2. Failures are still raised as exceptions.

    This removes libtiff's error handler, because redirecting the descriptor would also lose what other threads write.
    Where libtiff's functions are not exported, as on Windows, the messages remain.
    """
    import ctypes

    from PIL import _imaging

    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(_imaging.__file__)
        library.TIFFSetErrorHandler(None)
        library.TIFFSetErrorHandlerExt(None)
