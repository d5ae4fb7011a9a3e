"""Start programs as separate processes, one after another, and measure the time that they take."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
SCANS = sorted((CHECKOUT / "examples").glob("*.jpg"))
SCAN = CHECKOUT / "examples" / "mni152-slice-1.jpg"
DICOM_SCAN = CHECKOUT / "examples" / "dicom" / "mni152-slice-2.dcm"
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


def program(*arguments: object) -> list[str]:
    """Return the command line of the ``mri-edge`` that is installed beside this Python."""
    return [str(Path(sys.executable).with_name("mri-edge")), *map(str, arguments)]


def free_port() -> int:
    """Return a port of this machine that no program listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def resident_bytes(process: int) -> int:
    """Return the resident memory of a process."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descendants(root: int) -> set[int]:
    """Return the numbers of a process and of all that it started."""
    children: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children[parent].append(int(entry.name))
    found, waiting = set(), [root]
    while waiting:
        found.add(number := waiting.pop())
        waiting += children.get(number, [])
    return found


def output(command: Sequence[object], *, cwd: Path = CHECKOUT) -> list[str]:
    """Run a command and return the lines that it prints.

    Raises
    ------
    RuntimeError
        The command failed; the message is the last line of its error output.
    """
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, cwd=cwd, env=ENVIRONMENT
    )
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
    start = _cpu_seconds_of_children()
    output(command)
    return _cpu_seconds_of_children() - start


def _cpu_seconds_of_children() -> float:
    import resource

    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def alternate(
    commands: Mapping[str, Sequence[object]], rounds: int, measure: Callable[[Sequence[object]], float] = wall_seconds
) -> dict[str, list[float]]:
    """Run every command once a round, in turn (A B A B), so that a busy machine slows all of them alike.

    Returns what ``measure`` gives for each run. A first round warms the file cache and is not counted.
    """
    runs = [[measure(command) for command in commands.values()] for _ in range(rounds + 1)]
    return {name: list(values) for name, values in zip(commands, zip(*runs[1:], strict=True), strict=True)}
