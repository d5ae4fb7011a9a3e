"""A file cannot be exchanged between the check of its signature or hash and its use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from mri_edge import Classifier
from mri_edge.authoring.signing import sign
from mri_edge.benchmarking.trial import noise
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.signatures import make_keys
from mri_edge.engines import engine_file, open_engine
from mri_edge.errors import BundleError

onnx = pytest.importorskip("onnx", reason="the evil model is made with onnx (group 'dev')")
pytest.importorskip("cryptography", reason="signatures need the extra 'sign'")

PROGRAM = Path(__file__).with_name("swap_signed_model.py")


@pytest.fixture
def evil(tiny_onnx: Path, tmp_path: Path) -> Path:
    """A model of the same size as the tiny one, with other weights."""
    from onnx import numpy_helper

    model = onnx.load(tiny_onnx)
    for weights in model.graph.initializer:
        if weights.name == "dense":
            weights.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weights), "dense"))
    path = tmp_path / "evil.onnx"
    path.write_bytes(model.SerializeToString())
    assert path.stat().st_size == tiny_onnx.stat().st_size
    engines = [open_engine(model, provider="cpu") for model in (tiny_onnx, path)]
    good, bad = (engine.run(noise(engine.input, 1)) for engine in engines)
    assert np.abs(good - bad).max() > 0.1
    return path


@pytest.fixture
def key(tiny_bundle: Path, tmp_path: Path) -> Path:
    """The public key that matches the signature of ``tiny_bundle``."""
    make_keys(tmp_path / "our.pem", tmp_path / "our.pub.pem")
    sign(Bundle.open(tiny_bundle), tmp_path / "our.pem", passphrase=str)
    return tmp_path / "our.pub.pem"


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_signed_model_exchanged_at_any_step_never_runs(tiny_bundle: Path, key: Path, evil: Path, engine: str) -> None:
    if reason := engine_file(engine).missing():
        pytest.skip(reason)
    done = subprocess.run(
        [sys.executable, PROGRAM, tiny_bundle, key, evil, engine], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["evil"] == 0
    assert found["signed"] > 0, "an exchange after the last read changes nothing"
    assert found["refused"] > 0, "an exchange before the last read is noticed"
    assert found["signed"] + found["refused"] == found["steps"] >= 6


def test_a_signed_model_that_is_exchanged_all_the_time_never_runs(tiny_bundle: Path, key: Path, evil: Path) -> None:
    """Exchange the names of two models as fast as the machine can."""
    model = tiny_bundle / "model.onnx"
    good, bad, ended = tiny_bundle.with_name("good"), evil, threading.Event()
    good.write_bytes(model.read_bytes())
    with Classifier.load(tiny_bundle, threads=1) as classifier:
        batch = noise(classifier.engine.input, 1)
        expected = classifier.engine.run(batch)

    def exchange() -> None:
        link = tiny_bundle.with_name("link")
        while not ended.is_set():
            for content in (bad, good):
                os.link(content, link)
                os.replace(link, model)

    thread = threading.Thread(target=exchange)
    thread.start()
    ran = refused = 0
    try:
        while min(ran, refused) < 3 and ran + refused < 500:
            try:
                with Classifier.load(Bundle.open(tiny_bundle, signed_by=key), threads=1) as classifier:
                    np.testing.assert_array_equal(classifier.engine.run(batch), expected)
                    ran += 1
            except BundleError:
                refused += 1
    finally:
        ended.set()
        thread.join()
    assert min(ran, refused) >= 3, "both must be seen"
