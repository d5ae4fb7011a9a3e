"""Whole processes measured in turn, A B A B, so that a noisy machine disturbs all of them alike."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

SCRIPTS = Path(__file__).parent / "scripts"
# pip compiles what it installs: a checkout where Python may not keep its compiled files would start slower than that.
# A profile that `mri-edge tune` left on this machine would choose what is measured: they are looked for where none is.
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
    "MRI_EDGE_PROFILE_DIR": str(Path(__file__).parent / "no-profiles"),
}


def script(name: str, *arguments: object) -> list[str]:
    """Command line of a peer in ``benchmarks/scripts`` with this Python."""
    return [sys.executable, str(SCRIPTS / name), *map(str, arguments)]


def program(*arguments: object) -> list[str]:
    """Command line of ``mri-edge`` as it is installed beside this Python."""
    return [str(Path(sys.executable).with_name("mri-edge")), *map(str, arguments)]


def wall_seconds(command: Sequence[str]) -> float:
    """Wall-clock seconds of a whole process. Raises CalledProcessError if it fails."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT)
    return time.perf_counter() - start


def alternate(
    commands: Mapping[str, Sequence[str]], rounds: int, measure: Callable[[Sequence[str]], float] = wall_seconds
) -> dict[str, list[float]]:
    """Run every command once a round, in turn; what ``measure`` says of each run.

    A first round warms the file cache and is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            spent = measure(command)
            if number:
                seconds[name].append(spent)
    return seconds


def peak_memory(command: Sequence[str]) -> float:
    """Largest resident set of a process, in MiB. Raises CalledProcessError if the command fails."""
    measured = script("peak_memory.py", *command)
    done = subprocess.run(measured, check=True, capture_output=True, text=True, env=ENVIRONMENT)
    return int(done.stdout) / (2**20 if sys.platform == "darwin" else 2**10)


def ratio_of_medians(seconds: Mapping[str, Sequence[float]], of: str, to: str) -> float:
    """Median of ``of`` divided by the median of ``to``."""
    return statistics.median(seconds[of]) / statistics.median(seconds[to])
