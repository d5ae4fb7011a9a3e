"""Time of each part around the engine, by pytest-benchmark, and the gain from batches and threads as ratios."""

from __future__ import annotations

from functools import partial
from time import perf_counter

import numpy as np
import pytest

from benchmarks.compare.subjects import bundles
from benchmarks.processes import SCANS
from mri_edge import Bundle, Classifier
from mri_edge.benchmarking.tuning import thread_counts
from mri_edge.device.cpu import available_cpus
from mri_edge.scans.readers import picture

BUNDLES = bundles()
PARTS = {
    "decode": lambda name: partial(picture.load, SCANS[0]),
    "resize": lambda name: partial(Bundle.open(name).manifest.preprocessing.resize_picture, picture.load(SCANS[0])),
    "file to answer": lambda name: partial(Classifier.load(name, workload="single").predict, SCANS[0]),
    "open the bundle": lambda name: partial(Bundle.open, name),
    "load the classifier": lambda name: lambda: Classifier.load(name).close(),
}


@pytest.mark.parametrize("name", BUNDLES)
@pytest.mark.parametrize("part", PARTS)
def test_parts_around_the_engine(benchmark, part, name):
    benchmark.group = part
    benchmark(PARTS[part](name))


def fastest_ms(classifier: Classifier, size: int, rounds: int = 5) -> float:
    """Return the milliseconds per image of the fastest of ``rounds`` runs with a batch of ``size`` demo scans."""
    resize = classifier.bundle.manifest.preprocessing.resize_picture
    batch = np.stack([resize(picture.load(SCANS[index % len(SCANS)])) for index in range(size)])
    classifier.engine.run(batch)  # the first run is slower
    times = []
    for _ in range(rounds):
        start = perf_counter()
        classifier.engine.run(batch)
        times.append((perf_counter() - start) * 1e3 / size)
    return min(times)


@pytest.mark.parametrize("name", BUNDLES)
def test_a_batch_costs_no_more_per_image(name, report):
    with Classifier.load(name) as classifier:
        single, batch = (fastest_ms(classifier, size) for size in (1, 16))
    report(f"{name}: ms per image alone / in a batch of 16", single / batch)
    assert batch <= 1.05 * single


@pytest.mark.skipif(available_cpus() < 2, reason="needs two cores")
@pytest.mark.parametrize("name", BUNDLES)
def test_more_threads_are_not_slower(name, report):
    single, *_, most = thread_counts(available_cpus())
    times = {}
    for threads in (single, most):
        with Classifier.load(name, threads=threads) as classifier:
            times[threads] = fastest_ms(classifier, 8)
    report(f"{name}: speed-up with {most} threads", times[single] / times[most])
    assert times[most] <= 1.1 * times[single]
