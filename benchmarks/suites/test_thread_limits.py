"""Threads follow what this process may use: under ``taskset`` and under a CPU quota that the kernel enforces."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from paired import script

from mri_edge.device.cpu import available_cpus

SCAN = Path(__file__).parents[1] / "examples" / "mni152-slice-1.jpg"
_V1, _V2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
_PERIOD = 100_000  # microseconds


@pytest.fixture
def quota() -> Iterator[Path]:
    """A control group of our own that may use one core, version 1 or 2."""
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
        pytest.skip(f"no control group can be made here: {error}")
    yield group
    group.rmdir()


def _run(prefix: Sequence[str]) -> tuple[int, int, float]:
    command = [*prefix, *script("run_limited.py", SCAN)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    cores, threads, busy = done.stdout.split()
    return int(cores), int(threads), float(busy)


@pytest.fixture(autouse=True)
def _several_cores() -> None:
    if available_cpus() < 2:
        pytest.skip("one core alone may be used here, so there is nothing to limit")


def test_taskset_limits_the_threads():
    if not shutil.which("taskset"):
        pytest.skip("no taskset here")
    core = str(min(os.sched_getaffinity(0)))
    cores, threads, busy = _run(["taskset", "-c", core])
    print(f"taskset to one of {available_cpus()} cores: {threads} thread, {busy:.2f} cores busy")
    assert (cores, threads) == (1, 1)


def test_cpu_quota_limits_the_threads(quota):
    cores, threads, busy = _run(["sh", "-c", f'echo $$ > {quota}/cgroup.procs; exec "$@"', "sh"])
    print(f"quota of one of {available_cpus()} cores: {threads} thread, {busy:.2f} cores busy")
    assert (cores, threads) == (1, 1)
    assert busy <= 1.1  # the kernel sees to that; more would mean that the group was not in force


def test_without_a_limit_all_cores_are_used():
    cores, threads, busy = _run([])
    print(f"no limit: {threads} threads, {busy:.2f} cores busy")
    assert cores == threads == available_cpus()
