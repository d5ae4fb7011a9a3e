"""A clock that stands still while others have the CPU: wall-clock time less this thread's time in the run queue.

Linux counts how long a thread was ready to run and had to wait (``/proc/thread-self/schedstat``, second figure,
nanoseconds). Sleeping, reading and computing count here, waiting for a core does not: so ratios stay what they are
on a machine with other work. Elsewhere it is the plain clock.
"""

from __future__ import annotations

import glob
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from paired import ENVIRONMENT


def seconds_of(action: Callable[[], object], *, all_threads: bool = False) -> float:
    """Seconds that ``action`` takes, less what this thread waited for a core meanwhile.

    ``all_threads``: less what any thread of this process waited, for libraries that work in threads of their own;
    right where one of them works at a time.
    """
    with ExitStack() as stack:
        waited = _of_all_threads if all_threads else _of_this_thread(stack)
        # The counts are read within the clock's: a wait between the two would be taken off and had never counted.
        start = time.perf_counter()
        before = waited()
        action()
        after = waited()
        return time.perf_counter() - start - (after - before) / 1e9


def _of_this_thread(stack: ExitStack) -> Callable[[], int]:
    """What reads this thread's wait, nanoseconds: from an open file, so that reading takes microseconds."""
    try:
        number = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
    except OSError:  # the system does not tell
        return lambda: 0
    stack.callback(os.close, number)
    return lambda: int(os.pread(number, 100, 0).split()[1])


def _of_all_threads() -> int:
    total = 0
    for file in glob.glob("/proc/self/task/*/schedstat"):
        try:
            with open(file, encoding="ascii") as statistics:
                total += int(statistics.read().split()[1])
        except (OSError, ValueError, IndexError):  # it ended meanwhile
            continue
    return total


def cpu_seconds(command: Sequence[object]) -> float:
    """Seconds of CPU that a whole process takes, all of its threads together: waiting does not count, for anything.

    Raises
    ------
    RuntimeError
        The process failed; the message is the last that it said.
    """
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(list(map(str, command)), stdout=said, stderr=subprocess.STDOUT, env=ENVIRONMENT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            words = said.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise RuntimeError(f"{command[0]} failed: {words[-1]}")
    return usage.ru_utime + usage.ru_stime
