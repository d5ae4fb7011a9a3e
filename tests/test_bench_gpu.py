"""``benchmarks.gpu`` ends well without a GPU. Its steps are tested on the CPU and with a provider that cannot start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.fixture
def gpu(monkeypatch):
    """The program, imported from the checkout."""
    monkeypatch.syspath_prepend(str(CHECKOUT))
    from benchmarks import gpu

    monkeypatch.setattr(gpu, "_END", gpu.time.monotonic() + 600)
    return gpu


def test_without_a_gpu_the_steps_are_listed_and_the_exit_code_is_0(gpu, capfd, monkeypatch):
    monkeypatch.setattr(gpu, "gpu_name", lambda: gpu.NO_GPU)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    saved = {}
    monkeypatch.setattr(gpu, "save", lambda name, record, committed: saved.update(record, committed=committed))
    assert gpu.main() == 0
    out = capfd.readouterr().out
    assert "the NVIDIA driver reports no GPU here" in out
    for step in ("cuda: opens strictly", "tensorrt: opens faster with its cache", "peer: torch_vgg16"):
        assert f"left out  {step}" in out
    assert all("left out" in found for found in saved["steps"].values())
    assert not saved["committed"]


def test_a_refused_provider_falls_back_only_if_allowed(gpu, tmp_path):
    found = gpu._fallback("directml", tmp_path)
    assert found["right"], found
    assert "provider 'directml'" in found["refused"]
    assert found["warnings"] == ["provider_fallback"]
    assert not gpu._opens("directml", tmp_path)["right"]


def test_exactness_and_speed_are_measured(gpu, monkeypatch):
    pytest.importorskip("onnx", reason="the float32 network is built with onnx (group 'dev')")
    found = gpu.parity("cpu", "small")
    assert found["right"]
    assert found["float32"] == {"largest": 0.0, "tolerance": 1e-5, "flips": 0}
    monkeypatch.setattr(gpu, "BATCHES", (1, 2))
    found = gpu.speed("cpu", "small")
    assert found["right"]
    assert set(found["int8"]) == {1, 2}
    assert found["int8"][2]["scans_per_second"] > 0
    assert not gpu.speed("cuda", "small")["right"]


def test_verify_tune_and_the_profile_work_on_a_named_provider(gpu, tmp_path):
    assert gpu._verify("cpu", tmp_path)["right"]
    found = gpu._tune("cpu", tmp_path)
    assert found["right"], found


def test_a_step_that_fails_or_takes_too_long_is_wrong(gpu, monkeypatch):
    def endless(folder):
        raise subprocess.TimeoutExpired("mri-edge", 1)

    monkeypatch.setattr(gpu, "PROVIDERS", ("cuda",))
    monkeypatch.setattr(gpu, "PEERS", ())
    monkeypatch.setattr(gpu, "steps", lambda provider: {"endless": endless})
    assert gpu.run_steps(None)["cuda: endless"]["right"] is False
    monkeypatch.setattr(gpu, "_END", 0.0)
    assert "had passed" in gpu.run_steps(None)["cuda: endless"]["left out"]


def test_a_step_runs_in_a_process_of_its_own(gpu, tmp_path):
    pytest.importorskip("onnx", reason="the float32 network is built with onnx (group 'dev')")
    found = gpu._isolated("parity", "cpu", "small", tmp_path)
    assert found["right"], json.dumps(found)
    assert not gpu._isolated("parity", "nonsense", "small", tmp_path)["right"]
