"""Times of the parts around the engine, by pytest-benchmark: ``--benchmark-compare`` shows them beside earlier runs."""

from __future__ import annotations

from functools import partial

import pytest

from benchmarks.processes import SCAN
from mri_edge import Bundle, Classifier
from mri_edge.bundles.bundle import embedded_models
from mri_edge.scans.readers import picture

PARTS = {
    "decoding": lambda name: partial(picture.load, SCAN),
    "preprocessing": lambda name: partial(Bundle.open(name).manifest.preprocessing.resize_picture, picture.load(SCAN)),
    "file to answer": lambda name: partial(Classifier.load(name, workload="single").predict, SCAN),
    "opening the bundle": lambda name: partial(Bundle.open, name),
    "loading the classifier": lambda name: lambda: Classifier.load(name).close(),
}


@pytest.mark.parametrize("name", embedded_models())
@pytest.mark.parametrize("part", PARTS)
def test_parts_around_the_engine(benchmark, part, name):
    benchmark.group = part
    benchmark(PARTS[part](name))
