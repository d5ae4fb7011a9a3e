"""Peak memory of a training on 20,000 images, beside 2,000: it must not grow with their pixels."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.processes import script

pytest.importorskip("tensorflow", reason="needs mri-edge[train]")

FEW, MANY = 2_000, 20_000
PIXEL_BYTES = 128 * 128 * 3
# Names, hashes, labels and tasks of a thread pool take a few kilobytes an image.
ALLOWED = 0.25  # of the pixels


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> dict[int, Path]:
    """A data folder of each size, with smooth random images, all different."""
    rng = np.random.default_rng(0)
    folders = {count: tmp_path_factory.mktemp("pictures") / str(count) for count in (FEW, MANY)}
    for folder in folders.values():
        for label in ("no", "yes"):
            (folder / label).mkdir(parents=True)
    for index in range(MANY):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9), np.uint8))
        file = Path("no" if index % 3 else "yes") / f"{index:05}.png"
        coarse.resize((128, 128), Image.Resampling.BICUBIC).save(folders[MANY] / file, compress_level=1)
        if index < FEW:
            (folders[FEW] / file).hardlink_to(folders[MANY] / file)
    return folders


def peak_bytes(command: list[str]) -> int:
    """Return the largest anonymous memory of a process: file pages, which the system can reclaim, do not count."""
    process = subprocess.Popen(command)
    status = Path(f"/proc/{process.pid}/status")
    peak = 0
    while process.poll() is None:
        lines = status.read_text().splitlines()
        peak = max([peak, *(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))])
        time.sleep(0.02)
    assert process.returncode == 0
    return peak


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("recipe", ["reference", "robust"])
def test_memory_does_not_grow_with_the_pixels(recipe, pictures, tmp_path, report):
    few, many = (
        peak_bytes(script("train_tiny_network.py", recipe, pictures[count], tmp_path / str(count)))
        for count in (FEW, MANY)
    )
    grown, pixels = many - few, (MANY - FEW) * PIXEL_BYTES
    report(f"{recipe}: MB with {FEW} images", few / 1e6)
    report(f"{recipe}: memory growth / growth of pixels, {MANY} images", grown / pixels)
    assert grown < ALLOWED * pixels
