"""A clock that stands still while others have the CPU: wall-clock time less this thread's time in the run queue.

Linux counts how long a thread was ready to run and had to wait (``/proc/thread-self/schedstat``, second figure,
nanoseconds). Sleeping, reading and computing count here, waiting for a core does not: so ratios stay what they are
on a machine with other work. Elsewhere it is the plain clock.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence

_STATISTICS = "/proc/thread-self/schedstat"


def now() -> float:
    """Seconds on that clock; only differences mean something, and only within one thread."""
    try:
        with open(_STATISTICS, encoding="ascii") as file:
            waited = int(file.read().split()[1])
    except (OSError, ValueError, IndexError):
        waited = 0
    return time.perf_counter() - waited / 1e9


def cpu_seconds(command: Sequence[object]) -> float:
    """Seconds of CPU that a whole process takes, all of its threads together: waiting does not count, for anything.

    Raises
    ------
    RuntimeError
        The process failed; the message is the last that it said.
    """
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(list(map(str, command)), stdout=said, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            words = said.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise RuntimeError(f"{command[0]} failed: {words[-1]}")
    return usage.ru_utime + usage.ru_stime
