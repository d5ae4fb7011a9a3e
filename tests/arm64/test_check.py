"""`make test-arm64` finds differences, and the committed record contains none."""

from __future__ import annotations

import json
import math
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mri_edge.bundles.bundle import Bundle, embedded_models

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def check() -> ModuleType:
    """The script as a module, loaded by path because it is in no package."""
    spec = spec_from_file_location("arm64_check", HERE / "check.py")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module there
    spec.loader.exec_module(module)
    return module


def _answers(probability: float, label: str = "yes", name: str = "scan.jpg") -> list[dict[str, Any]]:
    return [{"file": f"/there/{name}", "label": label, "probabilities": {"no": 1 - probability, "yes": probability}}]


@pytest.mark.parametrize(
    ("there", "agrees"),
    [
        (_answers(0.9), True),
        (_answers(0.9 + 5e-6), True),
        (_answers(0.9 + 2e-5), False),
        (_answers(0.9, label="no"), False),
        (_answers(math.nan), False),
    ],
    ids=["same", "near", "far", "label", "nan"],
)
def test_results_agree_if_labels_and_probabilities_do(
    check: ModuleType, tiny_bundle: Path, there: Any, agrees: bool
) -> None:
    row = check.compare(Bundle.open(tiny_bundle), "model.onnx", _answers(0.9), there)
    assert check.agrees(row) is agrees


def test_results_of_other_scans_are_refused(check: ModuleType, tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    for there in ([], _answers(0.9, name="another.jpg")):
        with pytest.raises(check.Failed, match="other scans"):
            check.compare(bundle, "model.onnx", _answers(0.9), there)


def _report(probability: float, study: str = "2.25.1") -> Any:
    pydicom = pytest.importorskip("pydicom", reason="needs the extra node")
    report, measurement, value = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    value.NumericValue = f"{probability:.6f}"
    measurement.MeasuredValueSequence = [value]
    report.StudyInstanceUID, report.ContentSequence = study, [measurement]
    return report


def test_reports_may_differ_in_the_probability_only(check: ModuleType) -> None:
    compare = check.dicom_node.compare_reports
    here = _report(0.25)
    assert compare(here, _report(0.25)) == 0
    assert compare(here, _report(0.75)) == 0.5
    assert here.ContentSequence[0].MeasuredValueSequence[0].NumericValue == 0.25  # it is unchanged
    with pytest.raises(ValueError, match=r"differ in more than the probability: \(0020,000D\)"):
        compare(here, _report(0.25, study="2.25.2"))


def test_reports_without_or_with_more_numbers_are_refused(check: ModuleType) -> None:
    more, less = _report(0.25), _report(0.25)
    more.ContentSequence[0].MeasuredValueSequence[0].FloatingPointValue = 0.25
    del less.ContentSequence[0].MeasuredValueSequence[0].NumericValue
    for there in (more, less):
        with pytest.raises(ValueError, match="differ"):
            check.dicom_node.compare_reports(_report(0.25), there)
    with pytest.raises(ValueError, match="differ"):
        check.dicom_node.compare_reports(less, less)


def test_the_committed_record_has_no_problems(check: ModuleType) -> None:
    record = json.loads((HERE / "record.json").read_text(encoding="utf-8"))
    assert record["problems"] == []
    assert set(record["cores"]) == set(check.CORES)
    assert "dotprod" not in record["cores"]["cortex-a72"]["instructions"]
    assert "dotprod" in record["cores"]["cortex-a76"]["instructions"]
    for facts in record["cores"].values():
        assert facts["node"]["report_equal"]
        assert facts["node"]["largest_difference"] <= facts["node"]["bound"]
    earlier = record.get("earlier", {}).get("comparisons", [])  # of the formats that no embedded model has
    for row in [*record["comparisons"], *earlier]:
        assert check.agrees(row), row
        assert row["bound"] == check.BOUNDS[row["precision"]]
    rows = [row for row in record["comparisons"] if row["model"] in embedded_models()]
    shipped = [
        (bundle, artifact) for bundle in map(Bundle.open, embedded_models()) for artifact in bundle.manifest.artifacts
    ]
    measured = {(row["model"], row["artefact"]): row["sha256"] for row in rows}
    now = {(bundle.folder.name, artifact.file): artifact.sha256 for bundle, artifact in shipped}
    newer = {f"{model}/{file}" for (model, file), sha256 in now.items() if measured.get((model, file)) != sha256}
    assert newer == set(record.get("replaced_since", [])), "docs/devices.md must say which models are newer"
    engines = {(row["core"], row["engine"]) for row in record["comparisons"]}
    assert engines == {(core, engine) for core in check.CORES for engine in check.ENGINES}
