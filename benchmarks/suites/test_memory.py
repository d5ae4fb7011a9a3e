"""Memory over time: 10,000 predictions hold no more than 1,000 did."""

from __future__ import annotations

import subprocess
import sys

import pytest
from subjects import CHECKOUT, smallest

FIRST, ALL = 1000, 10_000
# Garbage that is collected in turns, and the allocator's own rounding.
GROWTH_MIB = 4
PROGRAM = """
import sys
from mri_edge import Classifier

def resident_mib():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmRSS:"))

model, first, total, *scans = sys.argv[1:]
with Classifier.load(model) as classifier:
    for index in range(int(total)):
        classifier.predict(scans[index % len(scans)])
        if index + 1 == int(first):
            before = resident_mib()
    print(before, resident_mib())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_predictions_do_not_grow(record_property):
    model = smallest()
    scans = sorted((CHECKOUT / "examples").glob("*.jpg"))
    command = [sys.executable, "-c", PROGRAM, model, str(FIRST), str(ALL), *map(str, scans)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    before, after = map(float, done.stdout.split())
    record_property(f"{model}: MiB after {FIRST} and after {ALL} predictions", [round(before, 1), round(after, 1)])
    print(f"{model}: {before:.1f} MiB after {FIRST:,} predictions, {after:.1f} after {ALL:,}")
    assert after <= before + GROWTH_MIB
