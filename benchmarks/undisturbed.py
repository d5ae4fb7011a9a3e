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

from paired import ENVIRONMENT

_STATISTICS = "/proc/thread-self/schedstat"


def seconds_of(action: Callable[[], object], *, all_threads: bool = False) -> float:
    """Seconds that ``action`` takes, less what this thread waited for a core meanwhile.

    ``all_threads``: less what any thread of this process waited, for libraries that work in threads of their own;
    right where one of them works at a time.
    """
    threads = "/proc/self/task/*/schedstat" if all_threads else _STATISTICS
    waited, start = _waited(threads), time.perf_counter()
    action()
    end = time.perf_counter()
    return end - start - (_waited(threads) - waited)


def _waited(threads: str) -> float:
    total = 0
    for file in glob.glob(threads):
        try:
            with open(file, encoding="ascii") as statistics:
                total += int(statistics.read().split()[1])
        except (OSError, ValueError, IndexError):  # it ended meanwhile, or the system does not tell
            continue
    return total / 1e9


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
