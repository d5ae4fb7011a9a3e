"""The comparison with plain libraries by pytest-benchmark passes, and fails for a step that became slower."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pytest_benchmark", reason="needs the dependency group 'dev'")

CHECKOUT = Path(__file__).resolve().parents[1]
NO_FAULT = ""
SLOW_DECODER = """
from mri_edge.scans.readers import picture
load = picture.load
def slow(source):
    for _ in range(9):
        load(source)
    return load(source)
picture.load = slow
"""


def compare(storage: Path, *arguments: str, fault: str = NO_FAULT) -> subprocess.CompletedProcess[str]:
    program = f"import sys\n{fault}\nimport pytest\nsys.exit(pytest.main(sys.argv[1:]))"
    command = [
        sys.executable,
        "-c",
        program,
        "benchmarks/suites/test_peers.py",
        "-k",
        "decode",
        "-p",
        "no:cacheprovider",
    ]
    command += ["--benchmark-storage", str(storage), "--benchmark-timer", "time.process_time", *arguments]
    command += ["--benchmark-max-time", "0.3"]
    command += ["--basetemp", str(storage / "base")]  # otherwise pytest deletes the folders of earlier runs
    # pytest-benchmark measures nothing in a worker of pytest-xdist, which it recognizes by the environment.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False, env=environment)


def test_slower_step_is_detected(tmp_path):
    done = compare(tmp_path, "--subject", "peer", "--benchmark-save", "peer")
    assert done.returncode == 0, done.stdout + done.stderr
    limit = ("--benchmark-compare", "--benchmark-compare-fail", "min:50%")
    done = compare(tmp_path, *limit)
    assert done.returncode == 0, done.stdout + done.stderr
    done = compare(tmp_path, *limit, fault=SLOW_DECODER)
    assert done.returncode != 0
    assert "test_decode (0001_peer) - Field 'min' has failed PercentageRegressionCheck" in done.stdout + done.stderr
