"""docs/other-programs.md: its scripts answer as `mri-edge predict` does, and other runtimes as ONNX Runtime does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT))  # scripts/ is not installed

from mri_edge import Bundle, Classifier
from mri_edge.export.metadata import add_metadata
from scripts.peers import PEERS, Peer, compare, pictures, reference

PAGE = CHECKOUT / "docs" / "other-programs.md"
# Largest |Δp|. float32: the order of summation. int8: a value that falls between two steps may be rounded to either.
LARGEST = {"float32": 1e-5, "int8": 0.05}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory) -> Path:
    """A folder with the scripts of the page under their titles."""
    folder = tmp_path_factory.mktemp("scripts")
    for title, code in re.findall(
        r'^```python title="([\w.]+)"\n(.*?)^```', PAGE.read_text(encoding="utf-8"), re.M | re.S
    ):
        (folder / title).write_text(code, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def pictures_to_ask(tmp_path_factory) -> list[Path]:
    """Demo scans, a picture of odd size in color, one of a single row, and one that EXIF turns."""
    folder = tmp_path_factory.mktemp("asked")
    rng = np.random.default_rng(3)
    for name, shape in {"odd.png": (301, 77, 3), "row.png": (1, 40, 3), "same.png": (128, 128, 3)}.items():
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / name)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned by 90 degrees
    Image.open(CHECKOUT / "examples" / "phantom-1.jpg").save(folder / "turned.jpg", exif=exif)
    return [*sorted((CHECKOUT / "examples").glob("*.jpg"))[::2], *sorted(folder.iterdir())]


@pytest.mark.parametrize(
    ("script", "name", "file"),
    [
        ("with_onnxruntime.py", "small", "model.onnx"),
        ("with_onnxruntime.py", "vgg16", "model.int8.onnx"),
        ("with_litert.py", "small", "model.int8.tflite"),
        ("with_onnxruntime.py", "lite", "model.int8.onnx"),
        ("with_litert.py", "lite", "model.int8.tflite"),
    ],
)
def test_script_gives_the_answer_of_predict(script, name, file, scripts, pictures_to_ask, tmp_path):
    bundle = Bundle.open(name)
    artifact = bundle.artifact(file)
    model = tmp_path / file
    model.write_bytes(add_metadata(bundle.read(artifact), artifact.format, bundle.manifest))
    with Classifier.load(bundle, artifact=file) as classifier:
        for picture in pictures_to_ask:
            command = [sys.executable, str(scripts / script), str(model), str(picture)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            answer, expected = json.loads(done.stdout), classifier.predict(picture)
            assert answer["label"] == expected.label, picture.name
            assert answer["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6), picture.name
            assert "Research use only" in answer["notice"]


def test_scripts_import_only_the_engine_numpy_and_pillow(scripts):
    imported = {
        name
        for script in scripts.glob("*.py")
        for name in re.findall(r"^(?:from|import) (\w+)", script.read_text(encoding="utf-8"), re.M)
    }
    assert imported - sys.stdlib_module_names == {"PIL", "ai_edge_litert", "numpy", "onnxruntime", "scan"}


def test_script_chooses_as_predict_does(scripts, monkeypatch):
    """Also for models without a threshold, and for a positive label among several."""
    from mri_edge.inference.prediction import decide

    monkeypatch.syspath_prepend(str(scripts))
    import scan

    rng = np.random.default_rng(0)
    labels = ("a", "b", "c")
    for positive, threshold in ((None, None), (1, None), (1, 0.2), (0, 0.9)):
        for row in rng.dirichlet([1, 1, 1], 50).astype(np.float32):
            [expected] = decide(row[None], positive, threshold)
            label, _ = scan.decide(row, labels, None if positive is None else labels[positive], threshold)
            assert label == labels[expected]


def _reason_to_skip(peer: Peer, file: str) -> str | None:
    """Why a runtime cannot open a file; docs/other-programs.md says the same."""
    if peer.name == "OpenCV" and "int8" in file:
        import cv2

        if int(cv2.__version__.split(".")[0]) < 5:
            return "OpenCV 4 gives wrong answers for int8 files"
        return "OpenCV 5.0 stops at a Gemm with an int32 bias"
    return None


@pytest.mark.parametrize(
    ("peer", "file"),
    [
        pytest.param(peer, file, id=f"{peer.name}, {file}")
        for peer in PEERS
        for file in ("model.onnx", "model.int8.onnx", "model.tflite", "model.int8.tflite")
        if peer.suffix == Path(file).suffix
    ],
)
def test_other_runtimes_give_the_same_probabilities(peer, file, exported, split, pictures):
    from mri_edge.export.calibration.images import read_batches

    artifact = exported.artifact(file)
    if not peer.installed():
        pytest.skip("not installed")
    if reason := _reason_to_skip(peer, file):
        pytest.skip(reason)
    files = [path for path, _ in split.locate(pictures, "test")][::6]
    pixels = np.concatenate(list(read_batches(files, exported.manifest.preprocessing)))
    path = exported.path_of(artifact)
    answer = peer.run(path, pixels)
    if answer is not None:
        assert np.abs(answer - reference(path, pixels)).max() <= LARGEST[artifact.precision]


@pytest.mark.skipif(find_spec("cv2") is None, reason="needs OpenCV")
def test_opencv_runs_the_embedded_int8_model():
    import cv2

    if int(cv2.__version__.split(".")[0]) < 5:
        pytest.skip("OpenCV 4 gives wrong answers for int8 files")
    from scripts.peers import pictures as demo_pictures
    from scripts.peers import run_opencv

    bundle = Bundle.open("small")
    file, pixels = bundle.path_of(bundle.artifact("model.int8.onnx")), demo_pictures(bundle.manifest)
    assert np.abs(run_opencv(file, pixels) - reference(file, pixels)).max() <= LARGEST["int8"]


def test_error_of_another_runtime_is_named_by_its_first_line():
    """Some errors have no message, such as a MemoryError."""

    def failing(name: str, error: Exception) -> Peer:
        def run(file: Path, pixels: np.ndarray) -> None:
            raise error

        return Peer(name, ".onnx", lambda: True, run)

    bundle = Bundle.open("small")
    peers = [failing("full", MemoryError()), failing("strange", ValueError("\n no such operator\nin node 3"))]
    cells = compare(bundle, bundle.artifact("model.onnx"), pictures(bundle.manifest), peers)
    assert cells == {"full": "MemoryError", "strange": " no such operator"}
