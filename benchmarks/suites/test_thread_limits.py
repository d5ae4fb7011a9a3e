"""The number of threads follows the cores that a process may use: with ``taskset``, and with a CPU quota."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from benchmarks.processes import SCAN, output, script
from mri_edge.device.cpu import available_cpus

_V1, _V2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
_PERIOD = 100_000  # microseconds


@pytest.fixture
def quota() -> Iterator[Path]:
    """A control group, of version 1 or 2, that may use one core."""
    second = (_V2 / "cgroup.controllers").is_file()
    group = (_V2 if second else _V1) / f"mri-edge-benchmark-{os.getpid()}"
    try:
        group.mkdir()
        if second:
            (group / "cpu.max").write_text(f"{_PERIOD} {_PERIOD}")
        else:
            (group / "cpu.cfs_period_us").write_text(str(_PERIOD))
            (group / "cpu.cfs_quota_us").write_text(str(_PERIOD))
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        pytest.skip(f"cannot make a control group: {error}")
    yield group
    group.rmdir()


def _run(prefix: Sequence[str]) -> tuple[int, int, float]:
    """Return cores that may be used, threads of the engine, and cores that it kept busy."""
    cores, threads, busy = output([*prefix, *script("run_limited.py", SCAN)])[-1].split()
    return int(cores), int(threads), float(busy)


@pytest.fixture(autouse=True)
def _several_cores() -> None:
    if available_cpus() < 2:
        pytest.skip("needs two cores")


def test_taskset_limits_the_threads(report):
    if not shutil.which("taskset"):
        pytest.skip("needs taskset")
    core = str(min(os.sched_getaffinity(0)))
    cores, threads, busy = _run(["taskset", "-c", core])
    report("taskset to one core: cores busy", busy)
    assert (cores, threads) == (1, 1)


def test_cpu_quota_limits_the_threads(quota, report):
    cores, threads, busy = _run(["sh", "-c", f'echo $$ > {quota}/cgroup.procs; exec "$@"', "sh"])
    report("quota of one core: cores busy", busy)
    assert (cores, threads) == (1, 1)
    assert busy <= 1.1  # the kernel enforces it: more would mean that the process was not in the group


def test_without_a_limit_all_cores_are_used(report):
    cores, threads, busy = _run([])
    report("no limit: cores busy", busy)
    assert cores == threads == available_cpus()
