"""The file for github-action-benchmark has the format of its README."""

from __future__ import annotations

import json
import re

import pytest

from mri_edge.benchmarking.benchmark import PROFILES, Report, Row, Spread, Stream
from mri_edge.benchmarking.dashboard import entries

jsonschema = pytest.importorskip("jsonschema")

# README.md of github-action-benchmark, "customBiggerIsBetter and customSmallerIsBetter": each entry needs name, unit
# and value; range and extra are optional. Names must differ, because a chart belongs to a name.
SCHEMA = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["name", "unit", "value"],
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string", "minLength": 1},
            "unit": {"type": "string", "minLength": 1},
            "value": {"type": "number"},
            "range": {"type": "string"},
            "extra": {"type": "string"},
        },
    },
}
# The expression with which its src/extractRangeInfo.ts reads a range.
RANGE = re.compile(r"(?:\+-|±)\s*(\d.*)")
CPU = "Intel(R) Core(TM) i5-4570 CPU (x86_64): avx2, fma"


def measured(**machine: str) -> list[dict]:
    stream = Stream(12, Spread(2.0, 1.5, 2.2), {"p50": 2.0, "p90": None, "p99": None}, 3.0)
    rate = Spread(500.0, 400.0, 1000.0)
    row = Row(
        "model.onnx",
        "onnxruntime",
        "float32",
        100,
        None,
        provider="CPUExecutionProvider",
        threads=2,
        load_ms=Spread(50, 40, 60),
        first_ms=Spread(2, 2, 2),
        peak_mib=Spread(60, 60, 61),
        model=stream,
        model_rate=rate,
        file=stream,
        file_rate=rate,
        server_rate=rate,
        model_joules=Spread(0.2, 0.1, 0.3),
    )
    failed = Row("model.onnx", "openvino", "float32", 100, None, problem="not installed")
    report = Report(
        bundle="tiny 1 (12345678)",
        created="2026-01-01T00:00:00+00:00",
        profile="smoke",
        plan=PROFILES["smoke"],
        scans=2,
        batch=8,
        server_ms=50,
        machine={"cpu": CPU, "cores": 2, **machine},
        libraries={},
        rows=(row, failed),
        marks=(),
        model="tiny",
    )
    return json.loads(json.dumps(entries(report)))


def test_entries_match_the_documented_format():
    found = measured()
    jsonschema.validate(found, SCHEMA)
    assert len({entry["name"] for entry in found}) == len(found) == 9
    assert all(float(RANGE.search(entry["range"])[1]) >= 0 for entry in found)


def test_rates_become_times_because_smaller_is_better():
    found = {entry["name"].partition(": ")[2]: entry for entry in measured()}
    assert {entry["unit"] for entry in found.values()} == {"ms", "ms/image", "ms/query", "MiB", "J/scan"}
    offline = found["model only, Offline"]
    assert (offline["value"], offline["unit"], offline["range"]) == (2.0, "ms/image", "± 1")
    assert "1 to 2.5 ms/image" in offline["extra"]
    assert found["model only, SingleStream median"]["range"] == "± 0.5"


@pytest.mark.parametrize(
    ("machine", "named"),
    [({}, "Intel(R) Core(TM) i5-4570 CPU"), ({"board": "Raspberry Pi 5 Model B"}, "Raspberry Pi 5 Model B")],
)
def test_name_contains_what_must_be_the_same_to_compare_times(machine, named):
    subject = f"tiny, model.onnx in onnxruntime on CPUExecutionProvider, 2 threads of {named}"
    assert measured(**machine)[0]["name"] == f"{subject}: model only, SingleStream median"
