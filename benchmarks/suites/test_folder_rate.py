"""Many scans from files: beside the engine on arrays in memory, and beside Pillow alone where decoding is the bound."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from pathlib import Path

import pytest
from paired import ENVIRONMENT, program, script

from mri_edge.bundles.bundle import embedded_models
from mri_edge.device.cpu import available_cpus

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.jpg"))
BATCH = 8
MANY = 10_000
ROUNDS = 3


def _folder(path: Path, count: int) -> Path:
    """Copies of the demo scans, as files of their own."""
    path.mkdir()
    contents = [one.read_bytes() for one in EXAMPLES]
    for number in range(count):
        (path / f"{number:05}.jpg").write_bytes(contents[number % len(contents)])
    return path


@pytest.mark.parametrize("model", embedded_models())
def test_files_are_as_fast_as_arrays_unless_decoding_is_the_bound(model, tmp_path, record_property):
    folder = _folder(tmp_path / "scans", 30 * BATCH)
    command = script("run_files.py", model, folder, ROUNDS)
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT)
    rates = json.loads(done.stdout)
    share = rates["files"] / rates["memory"]
    bound = rates["decoding on one core"] * available_cpus() / rates["memory"]
    record_property(f"{model}: rate from files / from memory", round(share, 3))
    print(
        f"{model}: {share:.1%} of the engine's rate on arrays in memory; decoding on all cores "
        f"with nothing beside it would reach {bound:.1f} times that rate"
    )
    if bound < 10:  # decoding takes more than a tenth of the cores' time: 90% cannot be reached
        pytest.skip("decoding is the bound")
    assert share >= 0.9


def test_small_model_keeps_pace_with_pillow_on_10000_scans(tmp_path, record_property):
    if "small" not in embedded_models():
        pytest.skip("the embedded model 'small' is not in this checkout")
    folder = _folder(tmp_path / "scans", MANY)
    ours, theirs = [], []
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run(
            program("predict", folder, "--model", "small", "--json"), check=True, capture_output=True, env=ENVIRONMENT
        )
        ours.append(MANY / (time.perf_counter() - start))  # the start of the program included
        assert len(done.stdout.splitlines()) == MANY
        peer = subprocess.run(script("pillow_folder.py", folder), check=True, capture_output=True, text=True)
        theirs.append(float(peer.stdout))
    share = statistics.median(ours) / statistics.median(theirs)
    record_property("small: rate from a folder / Pillow alone", round(share, 3))
    print(f"small, {MANY:,} scans, {available_cpus()} cores: {share:.1%} of Pillow's rate alone")
    assert share >= 0.85
