"""Damaged model files open or are refused with a message: no traceback, no crash of the process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("keras", reason="needs the extra 'export'")
pytest.importorskip("tf2onnx", reason="needs the extra 'export'")

PROGRAM = Path(__file__).with_name("fuzz_models.py")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "count"),
    [("keras", 300), ("keras-inside", 300), ("h5", 300), ("backbone-h5", 300), ("backbone-ckpt", 300), ("saved", 60)],
)
def test_it_opens_or_is_refused(kind, count, tmp_path):
    command = [sys.executable, str(PROGRAM), str(tmp_path), kind, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["opened"] + found["refused"] == count
    assert found["refused"] > 0
