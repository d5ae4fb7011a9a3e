"""Every result that a command writes is valid against `result.schema.json`, which is part of the package."""

from __future__ import annotations

import csv
import io
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mri_edge import Classifier
from mri_edge.cli import run

jsonschema = pytest.importorskip("jsonschema", reason="needs the group 'dev'")

EXAMPLES = Path(__file__).parents[2] / "examples"
SCHEMA = json.loads(files("mri_edge").joinpath("inference", "result.schema.json").read_text(encoding="utf-8"))


def check(record: dict[str, Any], kind: str) -> None:
    """Check that the record is valid and that the schema names each of its keys."""
    validator = jsonschema.Draft202012Validator(SCHEMA, format_checker=jsonschema.FormatChecker())
    validator.validate(record)
    assert set(record) <= set(SCHEMA["$defs"][kind]["properties"])
    for warning in record.get("warnings", ()):
        assert set(warning) == set(SCHEMA["$defs"]["warning"]["properties"])
    assert record["schema_version"] == 1


@pytest.fixture
def scans(tmp_path: Path) -> list[Path]:
    """A good scan, a scan with two warnings, a file that is no picture, and a missing file."""
    folder = tmp_path / "scans"
    folder.mkdir()
    sound, doubtful, broken = folder / "a.jpg", folder / "b.png", folder / "c.png"
    sound.write_bytes((EXAMPLES / "phantom-1.jpg").read_bytes())
    Image.fromarray(np.full((40, 120, 3), (200, 40, 40), np.uint8)).save(doubtful)
    broken.write_text("no picture")
    return [sound, doubtful, broken, folder / "missing.png"]


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_predict_json(scans, capfd):
    assert run(["predict", "--json", *map(str, scans)]) == 1
    records = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    for record, kind in zip(records, ["prediction", "prediction", "failure", "failure"], strict=True):
        check(record, kind)
    codes = {warning["code"]: (warning["value"], warning["limit"]) for warning in records[1]["warnings"]}
    assert codes["tiny"] == (40, 100)
    assert codes["narrow"] == (3, 2)
    assert "error" not in records[0]
    assert all("label" not in record and record["code"] for record in records[2:])


def test_predict_csv_names_the_codes_too(scans, capfd):
    assert run(["predict", "--csv", *map(str, scans)]) == 1
    rows = list(csv.DictReader(io.StringIO(capfd.readouterr().out)))
    assert rows[0]["warning_codes"] == rows[0]["error_code"] == ""
    assert {"tiny", "narrow"} <= set(rows[1]["warning_codes"].split("; "))
    assert all(row["error_code"] and row["error"] and not row["label"] for row in rows[2:])


def test_predict_resume(scans, tmp_path, capfd):
    assert run(["predict", "--resume", str(tmp_path / "out.jsonl"), *map(str, scans)]) == 1
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for record, kind in zip(records, ["prediction", "prediction", "failure", "failure"], strict=True):
        check(record, kind)


def test_predict_heatmap(scans, tmp_path, capfd):
    command = ["predict", "--json", "--model", "small", "--heatmap", str(tmp_path / "why")]
    assert run([*command, str(scans[0])]) == 0
    record = json.loads(capfd.readouterr().out)
    check(record, "prediction")
    assert Path(record["heatmap"]).is_file()


def test_watch(scans, tmp_path, capfd):
    command = ["watch", str(scans[0].parent), "--out", str(tmp_path / "out"), "--once", "--settle", "0", "--json"]
    assert run([*command, "--heatmap", "--model", "small"]) == 1
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    kept = [json.loads(path.read_text()) for path in (tmp_path / "out" / "results").iterdir()]
    assert len(lines) == len(kept) == 3
    for record in (*lines, *kept):
        check(record, "failure" if "error" in record else "prediction")
        assert {"sha256", "moved_to", "time"} <= set(record)


def test_a_picture_without_a_file(tiny_bundle):
    with Classifier.load(tiny_bundle) as classifier:
        check(classifier.predict(np.zeros((200, 200), np.uint8)).to_dict(), "prediction")


@pytest.mark.parametrize(
    "change",
    [{"schema_version": 2}, {"warnings": ["words"]}, {"model_hash": "?"}, {"error": "both"}, {"threshold": 2}],
    ids=str,
)
def test_the_schema_refuses_results_that_no_command_writes(tiny_bundle, change):
    with Classifier.load(tiny_bundle) as classifier:
        record = classifier.predict(np.zeros((200, 200), np.uint8)).to_dict() | change
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(record, SCHEMA)
