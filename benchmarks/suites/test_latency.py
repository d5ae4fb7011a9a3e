"""Latency by pytest-benchmark: every artefact in every engine, batches from 1 to 64, threads, and the parts around.

Artefacts are those of the bundles that ``subjects.py`` finds. These are tables to look into; what is asserted are
ratios within the run.
"""

from __future__ import annotations

import os
from time import perf_counter

import numpy as np
import pytest
from subjects import CHECKOUT, bundles

from mri_edge import Bundle, Classifier
from mri_edge.benchmarking.benchmark import subjects as runnable
from mri_edge.benchmarking.tuning import thread_counts
from mri_edge.device.cpu import available_cpus
from mri_edge.engines import open_engine
from mri_edge.scans.readers import picture

SCANS = sorted((CHECKOUT / "examples").glob("*.jpg"))
BUNDLES = bundles()
RUNNABLE = [(name, one) for name, bundle in BUNDLES.items() for one in runnable(bundle) if one.problem is None]
BATCHES = (1, 2, 4, 8, 16, 32, 64)


def tensors(bundle: Bundle, count: int) -> np.ndarray:
    fit = bundle.manifest.preprocessing.fit
    return np.stack([fit(picture.load(SCANS[index % len(SCANS)])) for index in range(count)])


@pytest.mark.parametrize(("name", "one"), RUNNABLE, ids=lambda item: getattr(item, "engine", item))
def test_each_artefact_in_each_engine(benchmark, name, one):
    benchmark.group = f"{name}, one image, model only"
    benchmark.name = f"{one.artefact.file}, {one.engine}"
    bundle = BUNDLES[name]
    engine = open_engine(bundle.path_of(one.artefact), engine=one.engine, provider="cpu")
    batch = tensors(bundle, 1)
    found = benchmark.pedantic(engine.run, (batch,), rounds=15, warmup_rounds=2)
    engine.close()
    assert found.shape == (1, len(bundle.manifest.labels))


@pytest.mark.parametrize("name", BUNDLES)
def test_batches_do_not_cost_more_an_image(name, record_property):
    """From 1 to 64: the engine takes them all, and in the best batch an image takes no longer than a single one."""
    with Classifier.load(name) as classifier:
        batches = {size: tensors(classifier.bundle, size) for size in BATCHES}
        ms = {size: [] for size in BATCHES}
        for _ in range(4):
            for size, batch in batches.items():
                ms[size].append(_ms(classifier.engine.run, batch) / size)
    best = {size: min(values[1:]) for size, values in ms.items()}
    for size, value in best.items():
        record_property(f"{name}: ms an image, batch {size}", round(value, 3))
        print(f"{name}: batch {size:>2}: {value:.3f} ms an image")
    assert min(value for size, value in best.items() if size > 1) <= 1.05 * best[1]


@pytest.mark.skipif(available_cpus() < 2, reason="needs two cores")
@pytest.mark.parametrize("name", BUNDLES)
def test_threads_scale(name, record_property):
    with_threads = {count: Classifier.load(name, threads=count) for count in thread_counts(available_cpus())}
    ms: dict[int, list[float]] = {count: [] for count in with_threads}
    batch = tensors(Bundle.open(name), 8)
    for _ in range(6):
        for count, classifier in with_threads.items():
            ms[count].append(_ms(classifier.engine.run, batch))
    best = {count: min(values[1:]) for count, values in ms.items()}
    for count, value in best.items():
        record_property(f"{name}: speed-up with {count} threads", round(best[1] / value, 2))
        print(f"{name}: {count} threads: {best[1] / value:.2f} times one thread")
        with_threads[count].close()
    assert best[max(best)] <= 1.1 * best[1]


def test_decoding(benchmark):
    benchmark.group = "file to answer"
    benchmark(picture.load, SCANS[0])


def test_preprocessing(benchmark):
    benchmark.group = "file to answer"
    benchmark(Bundle.open().manifest.preprocessing.fit, picture.load(SCANS[0]))


@pytest.mark.parametrize("name", BUNDLES)
def test_file_to_answer(benchmark, name):
    benchmark.group = "file to answer"
    with Classifier.load(name, many=False) as classifier:
        assert benchmark(classifier.predict, SCANS[0]).file == os.fspath(SCANS[0])


@pytest.mark.parametrize("name", BUNDLES)
def test_bundle_opening(benchmark, name):
    benchmark.group = "loading"
    assert benchmark(Bundle.open, name).manifest.artefacts


@pytest.mark.parametrize("name", BUNDLES)
def test_classifier_loading(benchmark, name):
    """Hashes and a session: what a cold start pays after its imports."""
    benchmark.group = "loading"
    benchmark.pedantic(lambda: Classifier.load(name).close(), rounds=5, warmup_rounds=1)


def _ms(function, batch: np.ndarray) -> float:
    start = perf_counter()
    function(batch)
    return (perf_counter() - start) * 1e3
