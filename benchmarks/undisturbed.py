"""A clock that stands still while others have the CPU: wall-clock time less this thread's time in the run queue.

Linux counts how long a thread was ready to run and had to wait (``/proc/thread-self/schedstat``, second figure,
nanoseconds). Sleeping, reading and computing count here, waiting for a core does not: so ratios stay what they are
on a machine with other work. Elsewhere it is the plain clock.
"""

from __future__ import annotations

import os
import subprocess
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


def process_seconds(command: Sequence[str]) -> float:
    """Seconds that a whole process takes from start to end, less what its main thread waited for a core.

    Raises
    ------
    RuntimeError
        The process failed; the message is the last that it said.
    """
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        waited = 0.0
        if hasattr(os, "waitid"):
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, and its figures are still there
            try:
                with open(f"/proc/{process.pid}/schedstat", encoding="ascii") as file:
                    waited = int(file.read().split()[1]) / 1e9
            except (OSError, ValueError, IndexError):
                pass
        spent = time.perf_counter() - start - waited
    if process.returncode:
        raise RuntimeError(f"{command[0]} failed: {said.decode(errors='replace').strip().splitlines()[-1:]}")
    return spent
