"""Whole processes measured in turn, A B A B, so that a noisy machine disturbs all of them alike."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

SCRIPTS = Path(__file__).parent / "scripts"


def script(name: str, *arguments: object) -> list[str]:
    """Command line of a peer in ``benchmarks/scripts`` with this Python."""
    return [sys.executable, str(SCRIPTS / name), *map(str, arguments)]


def program(*arguments: object) -> list[str]:
    """Command line of ``mri-edge`` as it is installed beside this Python."""
    return [str(Path(sys.executable).with_name("mri-edge")), *map(str, arguments)]


def alternate(commands: Mapping[str, Sequence[str]], rounds: int) -> dict[str, list[float]]:
    """Run every command once a round, in turn; wall-clock seconds of each run.

    A first round warms the file cache and is not counted. Raises CalledProcessError if a command fails.
    """
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio_of_medians(seconds: Mapping[str, Sequence[float]], of: str, to: str) -> float:
    """Median of ``of`` divided by the median of ``to``."""
    return statistics.median(seconds[of]) / statistics.median(seconds[to])
