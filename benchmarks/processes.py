"""Start programs as separate processes, one after another, and measure what they take."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
SCANS = sorted((CHECKOUT / "examples").glob("*.jpg"))
SCAN = CHECKOUT / "examples" / "mni152-slice-1.jpg"
# With PYTHONDONTWRITEBYTECODE a checkout would start slower than an installed package, which pip compiles.
# A profile from `mri-edge tune` on this machine would change what is measured, so profiles are read from a folder that
# does not exist.
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
    "MRI_EDGE_PROFILE_DIR": str(Path(__file__).parent / "no-profiles"),
}


def script(name: str, *arguments: object) -> list[str]:
    """Return the command line of a program in ``scripts/measured``, run by this Python."""
    return [sys.executable, str(CHECKOUT / "scripts" / "measured" / name), *map(str, arguments)]


def module(name: str, *arguments: object) -> list[str]:
    """Return the command line of a module in this checkout, run by this Python; ``output`` starts it there."""
    return [sys.executable, "-m", name, *map(str, arguments)]


def program(*arguments: object) -> list[str]:
    """Return the command line of the ``mri-edge`` that is installed beside this Python."""
    return [str(Path(sys.executable).with_name("mri-edge")), *map(str, arguments)]


def output(command: Sequence[object], *, cwd: Path = CHECKOUT, env: Mapping[str, str] = ENVIRONMENT) -> list[str]:
    """Run a command and return the lines that it prints.

    Raises
    ------
    RuntimeError
        The command failed; the message is the last line of its error output.
    """
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=cwd, env=env)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["it printed no error message"])[-1])
    return done.stdout.splitlines()


def wall_seconds(command: Sequence[object]) -> float:
    """Return the wall-clock seconds of a process. Raises RuntimeError if it fails."""
    start = time.perf_counter()
    output(command)
    return time.perf_counter() - start


def cpu_seconds(command: Sequence[object]) -> float:
    """Return the CPU seconds of a process, summed over its threads: no wait counts. Raises RuntimeError if it fails."""
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(list(map(str, command)), stdout=printed, stderr=subprocess.STDOUT, env=ENVIRONMENT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            printed.seek(0)
            lines = printed.read().decode(errors="replace").strip().splitlines()
            raise RuntimeError(f"{command[0]} failed: {(lines or ['it printed nothing'])[-1]}")
    return usage.ru_utime + usage.ru_stime


def peak_mib(command: Sequence[object]) -> float:
    """Return the largest resident set of a process, in MiB. Raises RuntimeError if it fails."""
    lines = output(script("peak_memory.py", *command))
    return int(lines[-1]) / (2**20 if sys.platform == "darwin" else 2**10)


def alternate(
    commands: Mapping[str, Sequence[object]], rounds: int, measure: Callable[[Sequence[object]], float] = wall_seconds
) -> dict[str, list[float]]:
    """Run every command once a round, in turn (A B A B), so that a busy machine slows all of them alike.

    Returns what ``measure`` gives for each run. A first round warms the file cache and is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            spent = measure(command)
            if number:
                seconds[name].append(spent)
    return seconds


def ratio_of_medians(seconds: Mapping[str, Sequence[float]], of: str, to: str) -> float:
    """Return the median of ``of`` divided by the median of ``to``."""
    return statistics.median(seconds[of]) / statistics.median(seconds[to])
