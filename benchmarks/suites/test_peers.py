"""Each step of a prediction, by us or by the plain library call that does the same, for pytest-benchmark to compare.

    pytest benchmarks/suites/test_peers.py --subject peer --benchmark-save peer
    pytest benchmarks/suites/test_peers.py --benchmark-compare --benchmark-compare-fail min:50%

The names of the tests do not contain the subject, so the second run is compared with the first: a ratio to a named peer
on the same machine. Everything runs on one thread, and ``--benchmark-timer time.process_time`` excludes waits.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from benchmarks.processes import SCANS
from mri_edge import Bundle, Classifier
from mri_edge.bundles.bundle import embedded_models
from mri_edge.engines import ModelFile, open_engine
from mri_edge.scans.readers import picture

SCAN = SCANS[0]
ARTIFACT = "model.int8.onnx"


@pytest.fixture
def subject(request) -> str:
    """``mri-edge`` or ``peer``, from the option --subject of conftest.py."""
    return request.config.getoption("--subject")


def pillow_decode(scan: Path) -> Image.Image:
    with Image.open(scan) as image:
        return image.convert("RGB")


def pillow_resize(image: Image.Image, bundle: Bundle) -> Image.Image:
    size = (bundle.manifest.preprocessing.width, bundle.manifest.preprocessing.height)
    return image.resize(size, Image.Resampling.BILINEAR)


def onnxruntime_session(bundle: Bundle) -> Callable[[np.ndarray], object]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(bundle.folder / ARTIFACT, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch})


def test_decode(benchmark, subject):
    """The peer is Pillow, with a conversion to an array."""
    benchmark((lambda scan: np.asarray(pillow_decode(scan))) if subject == "peer" else picture.load, SCAN)


@pytest.mark.parametrize("model", embedded_models())
def test_resize(benchmark, subject, model):
    """The peer is Pillow, in the mode of the file: most scans are gray, and we resize only one channel of those."""
    bundle = Bundle.open(model)
    if subject == "peer":
        with Image.open(SCAN) as image:
            image.load()
            benchmark(pillow_resize, image, bundle)
    else:
        benchmark(bundle.manifest.preprocessing.resize_sections, [picture.load(SCAN)])


@pytest.mark.parametrize("model", embedded_models())
def test_engine(benchmark, subject, model):
    """The peer is an ONNX Runtime session."""
    bundle = Bundle.open(model)
    batch = bundle.manifest.preprocessing.resize_picture(picture.load(SCAN))[None]
    if subject == "peer":
        benchmark(onnxruntime_session(bundle), batch)
    else:
        file = ModelFile.of(bundle, bundle.artifact(ARTIFACT))
        benchmark(open_engine(file, engine="onnxruntime", provider="cpu", threads=1).run, batch)


@pytest.mark.parametrize("model", embedded_models())
def test_file_to_answer(benchmark, subject, model):
    """The peer is the shortest script, as in scripts/measured/bare_onnxruntime.py: it checks nothing."""
    if subject == "peer":
        bundle = Bundle.open(model)
        run = onnxruntime_session(bundle)
        benchmark(lambda: run(np.asarray(pillow_resize(pillow_decode(SCAN), bundle))[None]))
    else:
        with Classifier.load(
            model, artifact=ARTIFACT, engine="onnxruntime", provider="cpu", threads=1, workload="single"
        ) as classifier:
            benchmark(classifier.predict, SCAN)
