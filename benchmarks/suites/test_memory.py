"""Memory of a cold prediction, and of 10,000 predictions, which must hold no more than 1,000 do."""

from __future__ import annotations

import sys

import pytest

from benchmarks.compare.subjects import bundles
from benchmarks.processes import SCAN, SCANS, output, program, script

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

PREDICTIONS = """
import sys
from itertools import cycle, islice
from mri_edge import Classifier

def resident_mib():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmRSS:"))

with Classifier.load("small") as classifier:
    for number, scan in enumerate(islice(cycle(sys.argv[1:]), 10_000), 1):
        classifier.predict(scan)
        if number == 1000:
            before = resident_mib()
    print(before, resident_mib())
"""
GROWTH_MIB = 4  # garbage that is not collected yet, and the allocator's rounding


def peak_mib(command: list[str]) -> float:
    """Return the largest resident set of a process."""
    return int(output(script("peak_memory.py", *command))[-1]) / 1024


def test_predict_needs_little_memory(report):
    peak = max(peak_mib(program("predict", SCAN, "--json", "--model", "vgg16")) for _ in range(5))
    report("peak memory of a cold predict, MiB", peak)
    assert peak <= 100
    keras = bundles()["vgg16"].folder / "model.keras"
    if keras.is_file():  # see scripts/whole_bundles.py
        ratio = peak_mib(script("keras_predict.py", keras, SCAN)) / peak
        report("peak memory, Keras script / predict vgg16", ratio)
        assert ratio >= 8


def test_memory_does_not_grow_with_the_predictions(report):
    before, after = map(float, output([sys.executable, "-c", PREDICTIONS, *SCANS])[-1].split())
    report("small: MiB after 1,000 predictions", before)
    report("small: MiB after 10,000 predictions", after)
    assert after <= before + GROWTH_MIB
