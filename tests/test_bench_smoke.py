"""The smoke benchmark catches what it is for: planted faults, each named by its stage, and nothing without one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
BENCHMARKS = CHECKOUT / "benchmarks"

# Each is put in before the benchmark imports anything else.
FAULTS = {
    "nothing": "",
    "a sleep in the resizer": """
import time
from mri_edge.scans import preprocessing
resize = preprocessing.resize_bilinear
def slow(*arguments):
    time.sleep(0.002)
    return resize(*arguments)
preprocessing.resize_bilinear = slow
""",
    "a disturbance of the resizer that passes": """
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
run = OnnxRuntimeEngine.run_all
OnnxRuntimeEngine.run_all = lambda self, batch: run(self, batch[..., ::-1].copy())
""",
}
PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]){}\nimport smoke\nsys.exit(smoke.main(sys.argv[2:]))"


def smoke(fault: str, out: Path) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(FAULTS[fault])
    command = [sys.executable, "-c", program, str(BENCHMARKS), "--quick", "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_nothing_is_worse_where_nothing_was_changed(tmp_path):
    done = smoke("nothing", tmp_path / "fresh.json")
    assert done.returncode == 0, done.stdout + done.stderr
    fresh = json.loads((tmp_path / "fresh.json").read_text(encoding="utf-8"))
    assert {one["stage"] for one in fresh["latency"].values()} == {"decode", "resize", "rest"}
    assert not any(one["wrong"] for one in fresh["accuracy"])


def test_what_was_disturbed_once_is_measured_again(tmp_path):
    done = smoke("a disturbance of the resizer that passes", tmp_path / "fresh.json")
    assert done.returncode == 0, done.stdout + done.stderr


def measured(cpu="one", cores=2, ratio=0.26, **others):
    """A record as ``smoke.run`` makes it, of one stage each of latency and accuracy."""
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


def test_on_another_cpu_int8_may_gain_less_but_not_be_slower_than_float(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import smoke

    record = measured("one with dot products")
    assert smoke.compare(measured("one without", ratio=0.9), record) == []
    assert smoke.compare(measured("one without", ratio=1.1), record) != []
    assert smoke.compare(measured("one with dot products", ratio=0.5), record) != []
    assert smoke.compare(measured("one with dot products", cores=8, ratio=0.5), record) == []
    record["machine"].pop("cores")  # as an older one
    assert smoke.compare(measured("one with dot products", cores=8, ratio=0.5), record) != []


def test_the_record_is_no_lucky_run(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import smoke

    runs = iter([measured(ratio=0.71, disturbed=[]), measured(ratio=1.05, disturbed=["hot"]), measured(disturbed=[])])
    monkeypatch.setattr(smoke, "run", lambda: next(runs))
    record = smoke.run_for_record()
    assert record["latency"]["vgg16: int8 / float32"]["ratio"] == 0.71
    assert record["disturbed"] == ["hot"]


def test_what_is_not_measured_any_more_got_worse(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import smoke

    record = measured()
    assert smoke.compare(record, record) == []
    [line] = smoke.compare(measured(latency={}), record)
    assert line.startswith("latency, infer: vgg16: int8 / float32: not measured")
    assert smoke.compare(measured(latency={}), record, quick=True) == []
    [line] = smoke.compare(measured(accuracy=[]), record)
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
def test_what_cannot_be_compared_here_and_says_so_is_no_worse(monkeypatch, what, without, worse):
    """OpenVINO is an extra that CI does without, and few have the real scans; LiteRT comes with what the tests need."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import smoke

    more = {"stage": "probabilities", "what": what, "detail": "same", "wrong": False}
    record = measured(accuracy=[more, *measured()["accuracy"]])
    assert bool(smoke.compare(measured(**without), record)) is worse


@pytest.mark.parametrize(
    ("fault", "stage"),
    [
        ("a sleep in the resizer", "latency, resize"),
        ("a sleep in the decoder", "latency, decode"),
        ("exchanged channels in the decoder", "accuracy, pixels"),
        ("exchanged channels in the resizer", "accuracy, tensor"),
        ("exchanged channels in the engine", "accuracy, probabilities"),
    ],
)
def test_a_planted_fault_is_caught_and_its_stage_named_first(fault, stage, tmp_path):
    done = smoke(fault, tmp_path / "fresh.json")
    assert done.returncode == 5, done.stdout + done.stderr
    worse = [line for line in done.stdout.splitlines() if line.startswith("WORSE  ")]
    assert worse[0].startswith(f"WORSE  {stage}: ")


def test_the_float_twin_is_the_same_network(tmp_path):
    """It gives what the int8 artefact gives, but for the rounding to 8 bits."""
    pytest.importorskip("onnx", reason="the twin is built with onnx (group 'dev')")
    import numpy as np

    from mri_edge import Bundle
    from mri_edge.engines import open_engine
    from mri_edge.scans.readers import picture

    program = (
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); from pathlib import Path;"
        "from float_twin import write_float_twin; write_float_twin(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    bundle = Bundle.open()
    path, twin = bundle.folder / "model.int8.onnx", tmp_path / "twin.onnx"
    subprocess.run([sys.executable, "-c", program, str(path), str(twin)], check=True)
    scans = sorted((CHECKOUT / "examples").glob("*.jpg"))
    batch = np.stack([bundle.manifest.preprocessing.fit(picture.load(one)) for one in scans])
    quantised, full = (open_engine(one, engine="onnxruntime", provider="cpu").run(batch) for one in (path, twin))
    # 0.03: what parity allows int8 of single images; see runtime/inference/replay.py.
    assert np.abs(quantised - full).max() < 0.03
    assert twin.stat().st_size > 3.5 * path.stat().st_size
