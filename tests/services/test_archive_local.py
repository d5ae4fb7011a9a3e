"""Ray that `archive` starts on this machine: who can reach it, what it starts, and what it leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs the extra archive")

from benchmarks.processes import descendants

EXAMPLES = Path(__file__).parents[2] / "examples"
DEMO = sorted(EXAMPLES.glob("*.jpg"))

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes and their sockets in /proc")


def test_a_started_ray_listens_only_on_this_machine_and_leaves_nothing_behind(tmp_path):
    # With this folder for temporary files, names of sockets would be too long for the system.
    scratch = tmp_path / "of-the-job-number-1234567"
    scratch.mkdir()
    command = [str(Path(sys.executable).with_name("mri-edge")), "archive", *map(str, DEMO), "--model", "small"]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(scratch)},
    )
    listening: set[str] = set()
    while process.poll() is None:
        processes = descendants(process.pid)
        listening |= _listening(processes)
        # The process of the dashboard asks the metadata services of clouds where it runs. Nothing uses the monitors.
        commands = [_command(number) for number in processes]
        assert not any(name in command for name in ("dashboard.py", "monitor.py") for command in commands)
        time.sleep(0.2)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert out.decode().splitlines()[-1] == "Research use only: not a medical device."
    assert all(line.startswith(b"mri-edge: ") for line in err.splitlines()), err
    assert listening
    assert listening <= {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert not list(Path("/tmp").glob(f"mri-edge-ray-*/session_*_{process.pid}"))  # noqa: S108
    assert not list(scratch.iterdir())


def _command(number: int) -> str:
    try:
        return Path(f"/proc/{number}/cmdline").read_text()
    except OSError:
        return ""


def _listening(processes: set[int]) -> set[str]:
    """The addresses, in hexadecimal as the kernel writes them, on which these processes accept TCP connections."""
    sockets = set()
    for number in processes:
        try:
            for link in Path(f"/proc/{number}/fd").iterdir():
                target = str(link.readlink())
                if target.startswith("socket:["):
                    sockets.add(target[8:-1])
        except OSError:
            continue
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path("/proc/net", name).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:
                found.add(fields[1].partition(":")[0])
    return found
