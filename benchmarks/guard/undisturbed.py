"""A clock that excludes the time a thread waits for a core, so that ratios hold on a busy machine.

Linux counts the nanoseconds that a thread was ready to run but had to wait (second value of
``/proc/thread-self/schedstat``); they are subtracted from wall-clock time. Sleeping, reading and computing still count.
On other systems this is the plain clock.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack


def seconds_of(action: Callable[[], object]) -> float:
    """Return the seconds that ``action`` takes, without the time this thread waited for a core."""
    with ExitStack() as stack:
        read_wait = _open_wait_of_this_thread(stack)
        # Both waits are read between the two clock readings. Otherwise a wait between a read and the clock would be
        # subtracted although the clock did not count it.
        start = time.perf_counter()
        before = read_wait()
        action()
        after = read_wait()
        return time.perf_counter() - start - (after - before) / 1e9


def _open_wait_of_this_thread(stack: ExitStack) -> Callable[[], int]:
    """Return a function that reads this thread's wait in nanoseconds, from an open file, which takes microseconds."""
    try:
        descriptor = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
    except OSError:  # not Linux, or a kernel without these statistics
        return lambda: 0
    stack.callback(os.close, descriptor)
    return lambda: int(os.pread(descriptor, 100, 0).split()[1])
