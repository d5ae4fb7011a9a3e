"""`mri-edge doctor` reports facts, tries each engine, and reports a library that kills its process."""

from __future__ import annotations

import json
import sys

import pytest

import mri_edge.engines
from mri_edge.benchmarking.trial import Trial, attempt
from mri_edge.cli import run

PLANTED = '''
"""An engine whose library was built for another CPU."""
NAME, SUFFIXES, EXTRA, MODULE, PACKAGES = "planted", (".planted",), "planted", "planted_library", ()
PROVIDERS = ("cpu",)
def missing():
    return None
'''
# What the CPU does to a process that meets an instruction it does not know.
LIBRARY = "import os, signal\nos.kill(os.getpid(), signal.{})\n"
# The new process must find the planted engine too; Python runs this file when it starts.
AT_START = "import mri_edge.engines\nmri_edge.engines.__path__.append({!r})\n"


@pytest.fixture
def plant(tmp_path, monkeypatch):
    """Add an engine with a library that kills its process with the named signal."""

    def put(signal_name: str) -> None:
        (tmp_path / "engine").mkdir()
        (tmp_path / "engine" / "planted.py").write_text(PLANTED)
        (tmp_path / "planted_library.py").write_text(LIBRARY.format(signal_name))
        (tmp_path / "sitecustomize.py").write_text(AT_START.format(str(tmp_path / "engine")))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(mri_edge.engines, "__path__", [*mri_edge.engines.__path__, str(tmp_path / "engine")])
        mri_edge.engines.engine_files.cache_clear()

    yield put
    monkeypatch.undo()
    mri_edge.engines.engine_files.cache_clear()
    sys.modules.pop("mri_edge.engines.planted", None)


def examine(capfd, *arguments: str, code: int = 0) -> dict:
    assert run(["doctor", "--json", *arguments]) == code
    return json.loads(capfd.readouterr().out)


def test_working_engines_are_distinguished_from_broken_ones(tiny_bundle, capfd):
    found = examine(capfd, "--model", str(tiny_bundle))
    rows = {(row["engine"], row["provider"]): row for row in found["engines"]}
    assert rows["onnxruntime", "cpu"]["works"] is True
    assert "CPUExecutionProvider" in rows["onnxruntime", "cpu"]["detail"]
    # No machine has both of these.
    assert {rows["onnxruntime", "coreml"]["works"], rows["onnxruntime", "directml"]["works"]} >= {False}
    assert found["machine"]["cores"].split()[0].isdigit()
    assert found["problems"] == []


def test_openvino_is_tried_for_real(tiny_bundle, capfd):
    pytest.importorskip("openvino", reason="OpenVINO is an extra")
    found = examine(capfd, "--model", str(tiny_bundle))
    [row] = [row for row in found["engines"] if row["engine"] == "openvino"]
    assert row["works"] is True
    assert row["detail"].startswith("OpenVINO CPU")


posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of this kind are POSIX")


@posix
def test_an_illegal_instruction_is_a_finding_and_not_a_crash(plant, tiny_bundle, capfd):
    plant("SIGILL")
    found = examine(capfd, "--model", str(tiny_bundle))
    rows = {row["engine"]: row for row in found["engines"] if row["provider"] == "cpu"}
    assert rows["planted"]["works"] is False
    assert "illegal instruction" in rows["planted"]["detail"]
    assert rows["onnxruntime"]["works"] is True


@posix
@pytest.mark.parametrize(("signal_name", "words"), [("SIGSEGV", "crashed"), ("SIGKILL", "memory")])
def test_other_ways_in_which_a_process_ends_are_named(plant, signal_name, words):
    plant(signal_name)
    problem = attempt(Trial("planted"), time_limit=60).problem
    assert words in problem
    assert signal_name in problem


def test_the_table_does_not_truncate_reasons(tiny_bundle, capfd):
    assert run(["doctor", "--model", str(tiny_bundle)]) == 0
    out = capfd.readouterr().out
    assert "onnxruntime" in out
    assert "pip install 'onnxruntime-gpu[cuda,cudnn]'" in out or "CUDAExecutionProvider" in out
    assert "instructions" in out


def test_two_wheels_of_one_library_are_a_problem(monkeypatch, tmp_path, tiny_bundle, capfd):
    (tmp_path / "onnxruntime_gpu-1.23.2.dist-info").mkdir()
    (tmp_path / "onnxruntime-1.20.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    [problem] = examine(capfd, "--model", str(tiny_bundle))["problems"]
    assert "onnxruntime 1.20.0 and onnxruntime-gpu 1.23.2" in problem
    assert "pip uninstall" in problem


def test_a_damaged_model_is_never_given_to_a_library(tiny_bundle, capfd):
    model = tiny_bundle / "model.onnx"
    content = bytearray(model.read_bytes())
    content[100] ^= 1
    model.write_bytes(content)
    found = examine(capfd, "--model", str(tiny_bundle), code=3)
    assert "SHA-256" in found["problems"][0]
    assert not any(row["works"] for row in found["engines"])
    engines = [row["engine"] for row in found["engines"]]
    assert len(engines) == len(set(engines)), "providers are told apart by a model only"


def test_doctor_exits_4_without_any_engine(tiny_bundle, capfd, monkeypatch):
    for module in mri_edge.engines.engine_files().values():
        monkeypatch.setattr(module, "missing", lambda: "not installed")
    found = examine(capfd, "--model", str(tiny_bundle), code=4)
    assert not any(row["works"] for row in found["engines"])


def test_a_trial_that_hangs_is_ended(monkeypatch, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "no answer within" in (attempt(Trial("fake"), time_limit=1).problem or "")


def test_a_trial_imports_nothing_from_the_current_folder(monkeypatch, tmp_path):
    for name in ("json", "subprocess", "numpy", "mri_edge"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken from the current folder')")
    monkeypatch.chdir(tmp_path)
    assert attempt(Trial("fake"), time_limit=60).problem is None
