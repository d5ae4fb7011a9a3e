"""`mri-edge predict --by series` and `--by study`: forms, what is skipped, exit codes, resuming, pictures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mri_edge.cli import run
from mri_edge.commands.scans.series_output import tenths

EXAMPLES = Path(__file__).parents[2] / "examples"
SCHEMA = json.loads(files("mri_edge").joinpath("inference", "series.schema.json").read_text(encoding="utf-8"))

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def predict(tiny_bundle: Path, capfd: pytest.CaptureFixture[str]) -> Call:
    """Run predict with the tiny bundle: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = run(["predict", "--model", str(tiny_bundle), *map(str, arguments)])
        return code, *capfd.readouterr()

    return call


@pytest.fixture
def folder(write_slices: Callable[..., Path]) -> Path:
    """Two studies: one with an axial and a coronal series, the other a single file of four frames."""
    for number in range(4):
        ids = {"study": "1", "series": "1.1", "instance": f"1.1.{number}"}
        write_slices(f"scans/{9 - number}.slices", 40 * number, at=5 * number, **ids)
    coronal = {"study": "1", "series": "1.2", "instance": "1.2.1", "orientation": [1, 0, 0, 0, 0, -1]}
    write_slices("scans/coronal.slices", 10, 20, **coronal)
    return write_slices("scans/volume.slices", 10, 20, 30, 40, study="2", series="2.1", instance="2.1.1").parent


def check(record: dict[str, Any]) -> None:
    """Check that the record is valid and that the schema names each of its keys."""
    jsonschema = pytest.importorskip("jsonschema", reason="needs the group 'dev'")
    jsonschema.Draft202012Validator(SCHEMA).validate(record)
    series, study = SCHEMA["$defs"]["series"]["properties"], SCHEMA["$defs"]["study"]["properties"]
    named = set(SCHEMA["properties"]) | set(series if record["by"] == "series" else study)
    assert set(record) <= named
    for member in record["series"] if record["by"] == "study" else []:
        assert set(member) <= set(series)


def records(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_json_has_one_object_a_series_with_every_slice(predict: Call, folder: Path) -> None:
    code, out, err = predict(folder, "--by", "series", "--json")
    assert code == 0
    found = {record["series"]: record for record in records(out)}
    for record in found.values():
        check(record)
    assert set(found) == {"1.1", "1.2", "2.1"}
    axial = found["1.1"]
    assert [piece["position_mm"] for piece in axial["slices"]] == [0, 5, 10, 15]
    assert [Path(piece["file"]).name for piece in axial["slices"]] == [f"{n}.slices" for n in (9, 8, 7, 6)]
    assert axial["rule"]["calibration"] == "default, not calibrated on patients"
    assert found["2.1"]["slices"][3]["index"] == 3
    assert (found["1.2"]["skipped"]["code"], found["1.2"]["slices"]) == ("plane", [])
    assert "coronal.slices: series of 2 slices skipped: coronal" in err
    assert "--plane any" in err


def test_json_by_study(predict: Call, folder: Path) -> None:
    code, out, _ = predict(folder, "--by", "study", "--json")
    assert code == 0
    first, second = records(out)
    check(first)
    check(second)
    assert {first["study"], second["study"]} == {"1", "2"}
    assert sorted(len(study["series"]) for study in (first, second)) == [1, 2]


@pytest.mark.parametrize(("by", "rows"), [("series", 3), ("study", 2)])
def test_csv_has_one_row_each(predict: Call, folder: Path, by: str, rows: int) -> None:
    code, out, _ = predict(folder, "--by", by, "--csv")
    table = list(csv.DictReader(io.StringIO(out)))
    assert (code, len(table)) == (0, rows)
    assert all(row["model_hash"] and row[by] for row in table)
    if by == "series":
        answered = next(row for row in table if row["series"] == "1.1")
        assert len(answered["probabilities"].split()) == 4
        assert (answered["count"], answered["plane"], answered["distance_mm"]) == ("4", "axial", "5.0")


@pytest.mark.parametrize("by", ["series", "study"])
def test_the_table_says_what_the_score_is_and_is_not(predict: Call, folder: Path, by: str) -> None:
    code, out, _ = predict(folder, "--by", by)
    assert code == 0
    assert "not calibrated on patients" in out.splitlines()[-2]
    assert "not a medical device" in out.splitlines()[-1]
    assert any("skipped" in line and "coronal" in line for line in out.splitlines())
    assert out.count("= the study") == (2 if by == "study" else 0)


def test_failed_slices_exit_with_1_and_the_series_is_answered(
    predict: Call, folder: Path, write_slices: Callable[..., Path]
) -> None:
    ids = {"study": "1", "series": "1.1", "instance": "1.1.2"}
    write_slices("scans/7.slices", None, at=10, **ids)
    code, out, err = predict(folder, "--by", "series", "--json")
    found = {record["series"]: record for record in records(out)}
    assert code == 1
    assert (found["1.1"]["failed"], found["1.1"]["count"]) == (1, 4)
    assert found["1.1"]["label"] is not None
    assert "damaged frame" in found["1.1"]["slices"][2]["error"]
    assert "damaged frame" in err
    check(found["1.1"])


def test_only_skipped_series_exit_with_1(predict: Call, folder: Path) -> None:
    assert predict(folder / "coronal.slices", "--by", "series")[0] == 1
    assert predict(folder / "coronal.slices", "--by", "series", "--plane", "any")[0] == 0


def test_pictures_beside_slices_are_answered_each_by_itself(predict: Call, folder: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_bytes((EXAMPLES / "phantom-1.jpg").read_bytes())
    (folder / "broken.jpg").write_text("no picture")
    code, out, err = predict(folder, "--by", "series", "--json")
    pictures = [record for record in records(out) if record["file"].endswith(".jpg")]
    assert code == 1
    assert [len(record["slices"]) for record in pictures] == [1, 1, 1]
    assert [record["failed"] for record in pictures] == [0, 0, 1]
    assert [record["series"] for record in pictures] == [None] * 3
    assert "3 pictures have no header" in err


def test_a_file_without_a_header_is_reported_once(predict: Call, folder: Path) -> None:
    (folder / "bad.slices").write_text("no header")
    code, out, err = predict(folder, "--by", "series", "--json")
    assert code == 1
    assert [record["code"] for record in records(out) if "error" in record] == ["damaged"]
    assert err.count("damaged header") == 1


def test_a_plane_without_series_is_wrong_usage(predict: Call, folder: Path) -> None:
    code, _, err = predict(folder, "--plane", "any")
    assert code == 2
    assert "--by series" in err


# --- resuming


def test_a_second_run_answers_only_what_is_new(
    predict: Call, folder: Path, tmp_path: Path, write_slices: Callable[..., Path]
) -> None:
    journal = tmp_path / "out.jsonl"
    assert predict(folder, "--by", "series", "--resume", journal)[0] == 0
    before = journal.read_text()
    assert len(records(before)) == 3
    code, _, err = predict(folder, "--by", "series", "--resume", journal)
    assert (code, journal.read_text()) == (0, before)
    assert "2 series have a result already" in err
    write_slices("scans/5.slices", 90, at=20, study="1", series="1.1", instance="1.1.4")
    assert predict(folder, "--by", "series", "--resume", journal)[0] == 0
    (new,) = records(journal.read_text().removeprefix(before))
    assert (new["series"], new["count"]) == ("1.1", 5)


def test_a_series_that_was_skipped_is_answered_when_its_plane_is_taken(
    predict: Call, folder: Path, tmp_path: Path
) -> None:
    journal = tmp_path / "out.jsonl"
    predict(folder, "--by", "series", "--resume", journal)
    before = journal.read_text()
    assert predict(folder, "--by", "series", "--plane", "any", "--resume", journal)[0] == 0
    (new,) = records(journal.read_text().removeprefix(before))
    assert (new["series"], "skipped" in new, new["label"] is None) == ("1.2", False, False)


def test_failed_slices_are_tried_again(
    predict: Call, folder: Path, tmp_path: Path, write_slices: Callable[..., Path]
) -> None:
    ids = {"study": "1", "series": "1.1", "instance": "1.1.2"}
    journal = tmp_path / "out.jsonl"
    write_slices("scans/7.slices", None, at=10, **ids)
    assert predict(folder, "--by", "series", "--resume", journal)[0] == 1
    before = journal.read_text()
    assert predict(folder, "--by", "series", "--resume", journal)[0] == 1
    assert journal.read_text() == before
    write_slices("scans/7.slices", 80, at=10, **ids)
    assert predict(folder, "--by", "series", "--resume", journal)[0] == 0
    (new,) = records(journal.read_text().removeprefix(before))
    assert (new["series"], new["failed"]) == ("1.1", 0)


def test_studies_continue_too(predict: Call, folder: Path, tmp_path: Path) -> None:
    journal = tmp_path / "out.jsonl"
    assert predict(folder, "--by", "study", "--resume", journal)[0] == 0
    before = journal.read_text()
    assert predict(folder, "--by", "study", "--resume", journal)[0] == 0
    assert journal.read_text() == before
    assert predict(folder, "--by", "study", "--plane", "any", "--resume", journal)[0] == 0
    assert [record["study"] for record in records(journal.read_text().removeprefix(before))] == ["1"]


@pytest.mark.parametrize(("first", "second"), [("slice", "series"), ("series", "slice"), ("study", "series")])
def test_a_file_of_other_results_is_refused_and_not_changed(
    predict: Call, folder: Path, tmp_path: Path, first: str, second: str
) -> None:
    journal = tmp_path / "out.jsonl"
    predict(folder, "--by", first, "--resume", journal)
    before = journal.read_bytes()
    code, _, err = predict(folder, "--by", second, "--resume", journal)
    assert (code, journal.read_bytes()) == (2, before)
    assert f"is a result by {first}, but this run gives results by {second}" in err


def test_a_line_that_a_kill_cut_short_is_removed(predict: Call, folder: Path, tmp_path: Path) -> None:
    journal = tmp_path / "out.jsonl"
    predict(folder, "--by", "series", "--resume", journal)
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-30])
    assert predict(folder, "--by", "series", "--resume", journal)[0] == 0
    assert [record["series"] for record in records(journal.read_text())] == [
        record["series"] for record in records(whole.decode())
    ]


# --- pictures


def test_the_curve_and_the_leading_heatmaps_are_written(predict: Call, folder: Path, tmp_path: Path) -> None:
    code, out, err = predict(folder, "--by", "series", "--heatmap", tmp_path / "why", "--json")
    assert code == 0
    found = {record["series"]: record for record in records(out)}
    check(found["1.1"])
    drawn = [Path(piece["heatmap"]).name for piece in found["1.1"]["slices"] if "heatmap" in piece]
    assert 1 <= len(drawn) <= 3
    assert {path.name for path in (tmp_path / "why").iterdir()} >= {"9.slices.curve.png", *drawn}
    with Image.open(found["2.1"]["curve"]) as curve:
        assert curve.width == 960
    assert "curve" not in found["1.2"]
    assert "2 curves" in err


def test_a_curve_of_unusual_series_is_drawn(predict: Call, write_slices: Callable[..., Path], tmp_path: Path) -> None:
    """One slice, slices without positions, slices without answers, and a gap."""
    write_slices("odd/one.slices", 10, series="1")
    write_slices("odd/without.slices", 10, 200, 30, series="2", position=None, orientation=None)
    for number, (at, gray) in enumerate(((0, 10), (5, None), (10, 30), (40, 200))):
        write_slices(f"odd/{number}.slices", gray, at=at, series="3", instance=f"3.{number}")
    code, _, _ = predict(tmp_path / "odd", "--by", "series", "--heatmap", tmp_path / "why")
    assert code == 1
    assert len(list((tmp_path / "why").glob("*.curve.png"))) == 3


@pytest.mark.parametrize(
    ("probabilities", "width", "text"),
    [((), 40, ""), ((0.0, 0.55, 1.0, None), 40, "059x"), ([0.1] * 50 + [0.9] + [0.1] * 49, 10, "1111191111")],
)
def test_the_curve_in_the_table_keeps_its_peaks(probabilities: tuple[float | None, ...], width: int, text: str) -> None:
    assert tenths(probabilities, width) == text
