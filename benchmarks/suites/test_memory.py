"""Memory over time: 10,000 predictions must hold no more than 1,000 do."""

from __future__ import annotations

import sys

import pytest

from benchmarks.processes import SCANS, output

GROWTH_MIB = 4  # garbage that is not collected yet, and the allocator's rounding
PROGRAM = """
import sys
from mri_edge import Classifier

def resident_mib():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmRSS:"))

with Classifier.load("small") as classifier:
    for index in range(10_000):
        classifier.predict(sys.argv[1:][index % len(sys.argv[1:])])
        if index + 1 == 1000:
            before = resident_mib()
    print(before, resident_mib())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_memory_does_not_grow_with_the_predictions(report):
    before, after = map(float, output([sys.executable, "-c", PROGRAM, *SCANS])[-1].split())
    report("small: MiB after 1,000 predictions", before)
    report("small: MiB after 10,000 predictions", after)
    assert after <= before + GROWTH_MIB
