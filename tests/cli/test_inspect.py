"""`mri-edge inspect`: a row or an object for each series, from headers alone, with the reasons for refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mri_edge.cli import run

Write = Callable[..., Path]


@pytest.fixture
def folder(write_slices: Write) -> Path:
    """An axial series with a gap, a coronal one, a localizer, and one of which a slice is refused."""
    for number in (0, 1, 2, 5):
        facts = {"series": "1", "instance": f"1.{number}", "matrix": [512, 256], "spacing": [0.5, 0.4], "echo": 22.0}
        write_slices(f"scans/{number}.slices", 10, at=5 * number, window=[40, 400], syntax="RLE", **facts)
    write_slices("scans/coronal.slices", 10, 20, series="2", orientation=[1, 0, 0, 0, 0, -1])
    write_slices("scans/plan.slices", 10, series="3", refusal="a localizer")
    write_slices("scans/bad-1.slices", 10, series="4", instance="4.1", refusal="too large", code="too_large")
    return write_slices("scans/bad-2.slices", 10, at=5, series="4", instance="4.2").parent


def test_the_table_shows_each_series_and_why_it_is_refused(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(folder)]) == 0
    lines = capfd.readouterr().out.splitlines()
    axial = next(line for line in lines if "256 x 512" in line)
    assert axial.split()[:2] == ["4", "axial"]
    assert all(text in axial for text in ("0.40 x 0.50", "5.00", "22", "RLE", "40, 400", "0.slices", "ok"))
    assert any("about 2 slices are missing" in line for line in lines)
    assert any(line.endswith("skipped: a localizer") for line in lines)
    assert any("skipped: coronal" in line for line in lines)
    assert any("1 of its slices will be refused: too large" in line for line in lines)


def test_json_names_every_file(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "damaged.slices").write_text("no header")
    assert run(["inspect", str(folder), "--json"]) == 1
    captured = capfd.readouterr()
    record = json.loads(captured.out)
    series = {member["series"]: member for member in record["series"]}
    assert [Path(file).name for file in series["1"]["files"]] == [f"{number}.slices" for number in (0, 1, 2, 5)]
    assert (series["1"]["windows"], series["1"]["skipped"]) == ([[40, 400]], None)
    assert series["1"]["warnings"][0]["code"] == "gap"
    assert series["3"]["skipped"]["code"] == "localizer"
    assert [refused["code"] for refused in series["4"]["refused"]] == ["too_large"]
    assert [failure["code"] for failure in record["unreadable"]] == ["damaged"]
    assert "damaged header" in captured.err


def test_no_pixels_are_read(write_slices: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    from mri_edge.scans import readers

    path = write_slices("a.slices", None, series="1")
    for name in ("read", "read_each"):
        monkeypatch.setattr(readers, name, lambda *arguments: pytest.fail("read pixels"))
    assert run(["inspect", str(path)]) == 0


def test_a_missing_folder_is_reported(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(tmp_path)]) == 1
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "the folder has no scans in it" in captured.err
