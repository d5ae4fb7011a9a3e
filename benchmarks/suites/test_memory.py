"""Memory of a cold prediction, of 10,000 predictions, and of a training on 20,000 images."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
FEW, MANY = 2_000, 20_000
PIXEL_BYTES = 128 * 128 * 3
ALLOWED = 0.25  # of the pixels: names, hashes, labels and tasks of a thread pool take a few kilobytes an image


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


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> dict[int, Path]:
    """A data folder of each size, with smooth random images, all different."""
    rng = np.random.default_rng(0)
    folders = {count: tmp_path_factory.mktemp("pictures") for count in (FEW, MANY)}
    for folder in folders.values():
        for label in ("no", "yes"):
            (folder / label).mkdir()
    for index in range(MANY):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9), np.uint8))
        file = Path("no" if index % 3 else "yes") / f"{index:05}.png"
        coarse.resize((128, 128), Image.Resampling.BICUBIC).save(folders[MANY] / file, compress_level=1)
        if index < FEW:
            (folders[FEW] / file).hardlink_to(folders[MANY] / file)
    return folders


def peak_anonymous_bytes(command: list[str]) -> int:
    """Return the largest anonymous memory of a process: file pages, which the system can reclaim, do not count."""
    process = subprocess.Popen(command)
    peak = 0
    while process.poll() is None:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        peak = max([peak, *(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))])
        time.sleep(0.02)
    assert process.returncode == 0
    return peak


@pytest.mark.parametrize("recipe", ["reference", "robust"])
def test_training_memory_does_not_grow_with_the_pixels(recipe, pictures, tmp_path, report):
    pytest.importorskip("tensorflow", reason="needs mri-edge[train]")
    few, many = (
        peak_anonymous_bytes(script("train_tiny_network.py", recipe, pictures[count], tmp_path / str(count)))
        for count in (FEW, MANY)
    )
    ratio = (many - few) / ((MANY - FEW) * PIXEL_BYTES)
    report(f"{recipe}: memory growth / growth of pixels, {MANY} images", ratio)
    assert ratio < ALLOWED
