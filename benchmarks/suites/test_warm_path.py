"""A warm single scan, file to answer: what comes on top of Pillow's decoding and the engine's run."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from paired import ENVIRONMENT, script

from mri_edge.bundles.bundle import embedded_models
from mri_edge.device.machine import cpu

SCAN = Path(__file__).parents[1] / "examples" / "mni152-slice-1.jpg"
ROUNDS = 200


def _measure(model: str) -> dict[str, float]:
    command = script("warm_scan.py", model, SCAN, ROUNDS)
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT)
    return json.loads(done.stdout)


@pytest.mark.parametrize("model", embedded_models())
def test_our_own_part_is_small(model, record_property):
    ms = _measure(model)
    record_property(f"{model}: own part of a warm scan, ms", round(ms["own"], 3))
    print(
        f"{model}, warm scan: {ms['whole']:.2f} ms, of it engine {ms['engine']:.2f}, Pillow's decoding "
        f"{ms['decode']:.2f}, our own part {ms['own']:.3f} ms CPU ({ms['own'] / ms['whole']:.1%}), "
        f"{ms['own'] / ms['decode_and_resize']:.2f} times what Pillow takes to decode and resize the file"
    )
    assert ms["own"] <= max(0.05 * ms["whole"], ms["decode_and_resize"])


def test_small_model_costs_little_more_than_decoding_and_resizing(record_property):
    if "small" not in embedded_models():
        pytest.skip("the embedded model 'small' is not in this checkout")
    ms = _measure("small")
    ratio = ms["whole"] / ms["decode_and_resize"]
    without = (ms["whole"] - ms["engine"]) / ms["decode_and_resize"]
    record_property("small: warm scan / Pillow's decode and resize", round(ratio, 2))
    record_property("small: warm scan without the engine / Pillow's decode and resize", round(without, 2))
    print(
        f"small, warm scan: {ratio:.2f} times Pillow's decoding and resizing of the same file, "
        f"{without:.2f} times without the engine"
    )
    assert without <= 1.25
    if cpu().multiplies_int8_fast:  # elsewhere the engine alone takes half as long as Pillow
        assert ratio <= 1.25
