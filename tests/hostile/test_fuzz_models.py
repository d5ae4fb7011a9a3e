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


COUNTS = {"keras": 100, "keras-inside": 100, "h5": 100, "backbone-h5": 100, "backbone-ckpt": 100, "saved": 20}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The outcomes of all kinds in one process, because TensorFlow starts slowly."""
    counts = [f"{kind}={count}" for kind, count in COUNTS.items()]
    command = [sys.executable, str(PROGRAM), str(tmp_path_factory.mktemp("damaged")), *counts]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", COUNTS)
def test_it_opens_or_is_refused(kind, found):
    assert found[kind]["opened"] + found[kind]["refused"] == COUNTS[kind]
    assert found[kind]["refused"] > 0
