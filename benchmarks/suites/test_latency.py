"""Latency of batches, threads and a warm scan as ratios, and the parts around the engine by pytest-benchmark."""

from __future__ import annotations

import json
from functools import partial
from time import perf_counter

import numpy as np
import pytest

from benchmarks.compare.subjects import bundles
from benchmarks.processes import SCAN, SCANS, output, ratio_of_medians, script
from mri_edge import Bundle, Classifier
from mri_edge.benchmarking.tuning import thread_counts
from mri_edge.bundles.bundle import embedded_models
from mri_edge.device.cpu import available_cpus
from mri_edge.device.machine import cpu
from mri_edge.scans.readers import picture

BUNDLES = bundles()
BATCHES = (1, 2, 4, 8, 16, 32, 64)


def tensors(bundle: Bundle, count: int) -> np.ndarray:
    """Return ``count`` demo scans as the network takes them."""
    resize = bundle.manifest.preprocessing.resize_picture
    return np.stack([resize(picture.load(SCANS[index % len(SCANS)])) for index in range(count)])


def ms_of(engine, batch: np.ndarray) -> float:
    """Return the milliseconds of one run."""
    start = perf_counter()
    engine.run(batch)
    return (perf_counter() - start) * 1e3


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize(
    ("int8", "full", "least"),
    [("model.int8.onnx", "model.onnx", 2.5), ("model.int8.tflite", "model.tflite", 4.0)],
    ids=["ONNX Runtime", "LiteRT"],
)
def test_int8_is_faster_than_float(int8, full, least, batch, report):
    """Each artifact in a separate process, in turn, on all cores."""
    bundle = BUNDLES["vgg16"]
    if not (bundle.folder / "model.onnx").is_file():
        pytest.skip("only shipped files: make bench with DATA=DIR, or python -m scripts.whole_bundles")
    seconds: dict[str, list[float]] = {int8: [], full: []}
    for _ in range(5):
        for name, values in seconds.items():
            command = script("run_artifact.py", bundle.path_of(bundle.artifact(name)), batch, available_cpus())
            values.append(float(output(command)[-1]))
    ratio = ratio_of_medians(seconds, full, int8)
    report(f"{full} / {int8}, batch {batch}", ratio)
    # On a CPU without dot products of 8-bit integers the gain depends on the library, but int8 must not be slower.
    assert ratio >= (least if cpu().multiplies_int8_fast else 1.0)


@pytest.mark.parametrize("name", BUNDLES)
def test_batches_do_not_cost_more_an_image(name, report):
    with Classifier.load(name) as classifier:
        batches = {size: tensors(classifier.bundle, size) for size in BATCHES}
        rounds = [[ms_of(classifier.engine, batch) / size for size, batch in batches.items()] for _ in range(4)]
    best = dict(zip(BATCHES, map(min, zip(*rounds[1:], strict=True)), strict=True))
    for size, ms in best.items():
        report(f"{name}: ms an image, batch {size}", ms)
    assert min(ms for size, ms in best.items() if size > 1) <= 1.05 * best[1]


@pytest.mark.skipif(available_cpus() < 2, reason="needs two cores")
@pytest.mark.parametrize("name", BUNDLES)
def test_threads_scale(name, report):
    counts = thread_counts(available_cpus())
    classifiers = [Classifier.load(name, threads=count) for count in counts]
    batch = tensors(Bundle.open(name), 8)
    rounds = [[ms_of(classifier.engine, batch) for classifier in classifiers] for _ in range(6)]
    best = dict(zip(counts, map(min, zip(*rounds[1:], strict=True)), strict=True))
    for classifier in classifiers:
        classifier.close()
    for count, ms in best.items():
        report(f"{name}: speed-up with {count} threads", best[1] / ms)
    assert best[max(best)] <= 1.1 * best[1]


PARTS = {
    "decoding": lambda name: partial(picture.load, SCANS[0]),
    "preprocessing": lambda name: partial(Bundle.open().manifest.preprocessing.resize_picture, picture.load(SCANS[0])),
    "file to answer": lambda name: partial(Classifier.load(name, workload="single").predict, SCANS[0]),
    "opening the bundle": lambda name: partial(Bundle.open, name),
    "loading the classifier": lambda name: lambda: Classifier.load(name).close(),
}


@pytest.mark.parametrize("name", BUNDLES)
@pytest.mark.parametrize("part", PARTS)
def test_parts_around_the_engine(benchmark, part, name):
    benchmark.group = part
    benchmark(PARTS[part](name))


@pytest.mark.parametrize("model", embedded_models())
def test_warm_scan_adds_little_to_decoding_and_the_engine(model, report):
    ms = json.loads(output(script("warm_scan.py", model, SCAN, 200))[-1])
    for name, value in ms.items():
        report(f"{model}, warm scan: {name}, ms", value)
    assert ms["own"] <= max(0.05 * ms["whole"], ms["decode_and_resize"])
    if model == "small":
        assert (ms["whole"] - ms["engine"]) / ms["decode_and_resize"] <= 1.25
        if cpu().multiplies_int8_fast:  # elsewhere the engine takes half as long as Pillow
            assert ms["whole"] / ms["decode_and_resize"] <= 1.25
