"""int8 against float of the same network: each artefact alone in a process of its own, in turn, same threads."""

from __future__ import annotations

import statistics
import subprocess
from pathlib import Path

import pytest
from paired import script
from subjects import bundles

from mri_edge.bundles.bundle import Bundle
from mri_edge.device.cpu import available_cpus
from mri_edge.device.machine import cpu

ROUNDS = 5
# Where the CPU has no dot products of 8-bit integers, int8 must not be slower; what it gains depends on the library.
_WITHOUT_DOT_PRODUCTS = 1.0


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    """The full network in float and int8: `make bench` makes it."""
    found = bundles()["vgg16"]
    if not (found.folder / "model.onnx").is_file():
        pytest.skip("only what ships is here: make bench with DATA=DIR, or python benchmarks/whole_bundles.py")
    return found


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize(
    ("int8", "full", "least"),
    [("model.int8.onnx", "model.onnx", 2.5), ("model.int8.tflite", "model.tflite", 4.0)],
    ids=["ONNX Runtime", "LiteRT"],
)
def test_int8_is_faster_than_float(bundle, int8, full, least, batch, record_property):
    paths = {name: bundle.path_of(bundle.artefact(name)) for name in (int8, full)}
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(ROUNDS):
        for name, path in paths.items():
            seconds[name].append(_measure(path, batch))
    ratio = statistics.median(seconds[full]) / statistics.median(seconds[int8])
    by_round = [slow / fast for slow, fast in zip(seconds[full], seconds[int8], strict=True)]
    record_property(f"{full} / {int8}, batch {batch}", round(ratio, 2))
    print(f"{int8}, batch {batch}: {ratio:.1f} times as fast as float ({min(by_round):.1f} to {max(by_round):.1f})")
    assert ratio >= (least if cpu().multiplies_int8_fast else _WITHOUT_DOT_PRODUCTS)


def _measure(path: Path, batch: int) -> float:
    command = script("run_artefact.py", path, batch, available_cpus())
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
