"""int8 against float of the same network: each artefact alone in a process of its own, in turn, same threads."""

from __future__ import annotations

import os
import statistics
import subprocess
from pathlib import Path

import pytest
from mri_edge.bundle import Bundle
from mri_edge.cpu import available_cpus
from paired import script

ROUNDS = 5


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    """A bundle with float and int8 artefacts, made by 'mri-edge export BUNDLE --quantize'."""
    folder = os.environ.get("MRI_EDGE_BUNDLE")
    if not folder:
        pytest.skip("name a bundle with float and int8 artefacts in MRI_EDGE_BUNDLE")
    return Bundle.open(folder)


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
    assert ratio >= least


def _measure(path: Path, batch: int) -> float:
    command = script("run_artefact.py", path, batch, available_cpus())
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
