"""The smoke benchmark detects planted faults and names their stage, and reports nothing without a fault."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]

# Code that runs before the benchmark starts.
FAULTS = {
    "a temporary disturbance of the resizer": """
import time
from itertools import count
from mri_edge.scans import preprocessing
resize, calls = preprocessing.resize_bilinear, count()
def disturbed(*arguments):
    if next(calls) < 300:
        time.sleep(0.002)
    return resize(*arguments)
preprocessing.resize_bilinear = disturbed
""",
    "a sleep in the decoder": """
import time
from mri_edge.scans.readers import picture
load = picture.load
def slow(source):
    time.sleep(0.002)
    return load(source)
picture.load = slow
""",
    "exchanged channels in the decoder": """
from mri_edge.scans.readers import picture
load = picture.load
picture.load = lambda source: load(source)[:, :, ::-1]
""",
    "exchanged channels in the resizer": """
from mri_edge.scans import preprocessing
resize = preprocessing.resize_bilinear
preprocessing.resize_bilinear = lambda *arguments: resize(*arguments)[..., ::-1].copy()
""",
    "exchanged channels in the engine": """
from mri_edge.engines.onnxruntime import OnnxRuntimeEngine
run = OnnxRuntimeEngine.run_outputs
OnnxRuntimeEngine.run_outputs = lambda self, batch, names: run(self, batch[..., ::-1].copy(), names)
""",
}
PROGRAM = "import sys{}\nfrom benchmarks.guard import smoke\n{}\nsys.exit(smoke.main(sys.argv[1:]))"


def smoke(fault: str, out: Path, *options: str, setting: str = "") -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(FAULTS[fault], setting)
    command = [sys.executable, "-c", program, "--quick", "--out", str(out), *options]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)


def test_nothing_is_worse_although_a_stage_was_disturbed(tmp_path):
    """``.ci/run`` compares without a disturbance."""
    done = smoke("a temporary disturbance of the resizer", tmp_path / "fresh.json", "--model", "small")
    assert done.returncode == 0, done.stdout + done.stderr
    fresh = json.loads((tmp_path / "fresh.json").read_text(encoding="utf-8"))
    assert {timing["stage"] for timing in fresh["latency"].values()} == {"decode", "resize", "rest"}
    assert not any(row["wrong"] for row in fresh["accuracy"])


@pytest.fixture
def guard(monkeypatch):
    """The smoke benchmark, imported from the checkout."""
    monkeypatch.syspath_prepend(str(CHECKOUT))
    from benchmarks.guard import smoke

    return smoke


def measured(cpu="one", cores=2, ratio=0.26, **others):
    """Return a record like those of ``smoke.run``, with one latency and one accuracy."""
    row = {"stage": "infer", "ratio": ratio, "ms": 1.0, "ruler_ms": 1.0}
    replayed = {"stage": "label", "what": "vgg16: model.int8.onnx in onnxruntime", "detail": "same", "wrong": False}
    return {
        "machine": {"cpu": cpu, "cores": cores},
        "libraries": {"onnxruntime": "1", "openvino": "1"},
        "real_scans": True,
        "latency": {"vgg16: int8 / float32": row},
        "accuracy": [replayed],
        **others,
    }


def test_on_another_cpu_int8_may_be_less_fast_but_not_slower_than_float(guard):
    record = measured("one with dot products")
    assert guard.compare(measured("one without", ratio=0.9), record) == []
    assert guard.compare(measured("one without", ratio=1.1), record) != []
    assert guard.compare(measured("one with dot products", ratio=0.5), record) != []
    assert guard.compare(measured("one with dot products", cores=8, ratio=0.5), record) == []
    record["machine"].pop("cores")  # older records lack it
    assert guard.compare(measured("one with dot products", cores=8, ratio=0.5), record) != []


@pytest.mark.parametrize(("stage", "ms", "ratio"), [("infer", 1.0, 1.0), ("start", 3.0, 1.0)])
def test_record_combines_several_runs(guard, monkeypatch, stage, ms, ratio):
    """Ours and the reference may each have been disturbed in another run. Whole processes are always disturbed."""
    rows = [
        {"stage": stage, "ratio": ms / ruler_ms, "ms": ms, "ruler_ms": ruler_ms}
        for ms, ruler_ms in ((1.0, 2.0), (1.5, 1.0), (3.0, 3.0), (2.0, 1.0), (1.4, 1.8))
    ]
    found = iter([{"vgg16: int8 / float32": row} for row in rows])
    monkeypatch.setattr(guard.stages, "measure", lambda *_: next(found))
    monkeypatch.setattr(guard.accuracy, "check", lambda *_: [])
    record = guard.run_for_record(models=["vgg16"])
    assert record["latency"]["vgg16: int8 / float32"] == {"stage": stage, "ratio": ratio, "ms": ms, "ruler_ms": ms}


def test_slower_stage_is_named_beside_a_record_of_the_same_machine(tmp_path):
    """A fifth is noticed too, but not always beside other programs; ``benchmarks.guard.sensitivity`` tests that."""
    sys.path.insert(0, str(CHECKOUT))
    try:
        from benchmarks.guard import sensitivity, smoke
    finally:
        sys.path.remove(str(CHECKOUT))
    arguments = ["--model", "small", "--stage", "resize", "--against", tmp_path / "record.json"]
    (tmp_path / "record.json").write_text(json.dumps(smoke.run_for_record(["resize"], ["small"])), encoding="utf-8")
    code, output = sensitivity.guard(tmp_path, "resize", arguments, part=0.5)
    assert (code, sensitivity.first_worse(output)) == (5, "resize"), output
    code, output = sensitivity.guard(tmp_path, None, arguments)
    assert code == 0, output


def test_stage_that_is_no_longer_measured_is_worse(guard):
    record = measured()
    assert guard.compare(record, record) == []
    [line] = guard.compare(measured(latency={}), record)
    assert line.startswith("latency, infer: vgg16: int8 / float32: not measured")
    assert guard.compare(measured(latency={}), record, ["decode"]) == []
    [line] = guard.compare(measured(accuracy=[]), record)
    assert line.startswith("accuracy, label: vgg16: model.int8.onnx in onnxruntime: not compared")


@pytest.mark.parametrize(
    ("what", "without", "worse"),
    [
        ("small: model.onnx in openvino", {"libraries": {"onnxruntime": "1"}}, False),
        ("small: model.onnx in openvino", {}, True),
        ("small: 51 reference images, model.onnx", {"real_scans": False}, False),
        ("small: 51 reference images, model.onnx", {}, True),
        ("small: model.int8.tflite in litert", {"libraries": {"onnxruntime": "1"}}, True),
    ],
)
def test_comparison_that_is_impossible_on_this_machine_is_not_worse(guard, what, without, worse):
    """CI has no OpenVINO, and few machines have the real scans. LiteRT is always installed with the tests."""
    more = {"stage": "probabilities", "what": what, "detail": "same", "wrong": False}
    record = measured(accuracy=[more, *measured()["accuracy"]])
    assert bool(guard.compare(measured(**without), record)) is worse


@pytest.mark.parametrize(
    ("fault", "stage"),
    [
        ("exchanged channels in the decoder", "accuracy, pixels"),
        ("exchanged channels in the resizer", "accuracy, tensor"),
        ("exchanged channels in the engine", "accuracy, probabilities"),
    ],
)
def test_planted_fault_is_detected_and_its_stage_is_named_first(fault, stage, tmp_path):
    assert worse_lines(fault, tmp_path)[0].startswith(f"WORSE  {stage}: ")


def test_planted_slowdown_is_detected_and_exceeds_its_limit_most(tmp_path):
    """Beside other programs, another stage may exceed its limit a little."""

    def excess(line: str) -> float:
        ratio, limit = re.search(r": ([\d.]+) times, .*limit ([\d.]+)$", line).groups()
        return float(ratio) / float(limit)

    lines = worse_lines("a sleep in the decoder", tmp_path)
    assert max(lines, key=excess).startswith("WORSE  latency, decode: ")


def worse_lines(fault: str, folder: Path) -> list[str]:
    """Return the lines about what is worse in one model with a fault, which is measured only twice again."""
    done = smoke(fault, folder / "fresh.json", "--model", "small", setting="smoke._REPEATS = 2")
    assert done.returncode == 5, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("WORSE  ")]


def test_float_twin_is_the_same_network(guard, tmp_path):
    """Its results differ from those of the int8 artifact only by the rounding to 8 bits."""
    pytest.importorskip("onnx", reason="the twin is built with onnx (group 'dev')")
    import numpy as np

    from benchmarks.guard.float_twin import write_float_twin
    from mri_edge import Bundle
    from mri_edge.engines import open_engine
    from mri_edge.scans.readers import picture

    bundle = Bundle.open()
    path, twin = bundle.folder / "model.int8.onnx", tmp_path / "twin.onnx"
    write_float_twin(path, twin)
    scans = sorted((CHECKOUT / "examples").glob("*.jpg"))
    batch = np.stack([bundle.manifest.preprocessing.resize_picture(picture.load(scan)) for scan in scans])
    quantized, full = (open_engine(model, engine="onnxruntime", provider="cpu").run(batch) for model in (path, twin))
    # One demo scan has a probability near one half, which rounding changes most.
    assert np.abs(quantized - full).max() < bundle.artifact("model.int8.onnx").parity.max_difference
    assert twin.stat().st_size > 3.3 * path.stat().st_size
