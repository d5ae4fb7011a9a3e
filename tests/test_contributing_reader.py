"""The example reader in CONTRIBUTING.md works in every command."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mri_edge import Classifier, Failure, InputError, Prediction
from mri_edge.cli import run
from mri_edge.scans import readers

CHECKOUT = Path(__file__).resolve().parents[1]
EXAMPLES = CHECKOUT / "examples"
MODULE = "mri_edge.scans.readers.stack"


def _stack(*slices: np.ndarray) -> bytes:
    height, width = slices[0].shape
    return struct.pack("<5s3H", b"STACK", len(slices), height, width) + b"".join(plane.tobytes() for plane in slices)


@pytest.fixture
def stack_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe_code: Callable[[str], str]) -> Iterator[None]:
    """Make the example reader discoverable."""
    folder = tmp_path / "more readers"
    folder.mkdir()
    (folder / "stack.py").write_text(recipe_code("Add a reader"), encoding="utf-8")
    monkeypatch.setattr(readers, "__path__", [*readers.__path__, str(folder)])
    readers._names.cache_clear()
    readers._reader.cache_clear()
    yield
    readers._names.cache_clear()
    readers._reader.cache_clear()
    sys.modules.pop(MODULE, None)


@pytest.fixture
def slices() -> list[np.ndarray]:
    return [
        np.asarray(Image.open(EXAMPLES / f"phantom-{number}.jpg").convert("L").resize((200, 220)))
        for number in (1, 2, 3)
    ]


@pytest.fixture
def scans(tmp_path: Path, slices: list[np.ndarray], stack_reader: None) -> Path:
    """A folder with a stack of three slices, a stack without a suffix, and an image."""
    folder = tmp_path / "scans"
    folder.mkdir()
    (folder / "head.stack").write_bytes(_stack(*slices))
    (folder / "IM0001").write_bytes(_stack(*slices[:2]))
    (folder / "z.jpg").write_bytes((EXAMPLES / "phantom-1.jpg").read_bytes())
    return folder


def _lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def _keys(records: list[dict]) -> list[tuple[str, int | None, int | None]]:
    return [(Path(record["file"]).name, record.get("index"), record.get("frames")) for record in records]


EXPECTED = [
    *(("IM0001", index, 2) for index in range(2)),
    *(("head.stack", index, 3) for index in range(3)),
    ("z.jpg", None, None),
]


@pytest.mark.parametrize("batch", ["1", "2", "8"])
def test_predict_writes_a_result_for_every_frame(scans: Path, capfd: pytest.CaptureFixture[str], batch: str) -> None:
    assert run(["predict", str(scans), "--json", "--batch", batch]) == 0
    out, err = capfd.readouterr()
    assert _keys(_lines(out)) == EXPECTED
    assert err == ""
    jsonschema = pytest.importorskip("jsonschema", reason="needs the extra 'dev'")
    schema = json.loads((CHECKOUT / "runtime" / "inference" / "result.schema.json").read_text(encoding="utf-8"))
    for record in _lines(out):
        jsonschema.validate(record, schema)


def test_frames_get_the_same_results_as_single_images(scans: Path, slices: list[np.ndarray]) -> None:
    with Classifier.load("small") as classifier:
        alone = [classifier.predict(plane).probability for plane in slices]
        frames = list(classifier.predict_frames(scans / "head.stack"))
        assert [frame.probability for frame in frames] == pytest.approx(alone, abs=1e-6)
        with pytest.raises(InputError, match="holds 3 frames"):
            classifier.predict(scans / "head.stack")


def test_damaged_stack_is_one_failure(scans: Path) -> None:
    (scans / "head.stack").write_bytes((scans / "head.stack").read_bytes()[:-1])
    with Classifier.load("small") as classifier:
        results = list(classifier.predict_batches([str(scans / "IM0001"), str(scans / "head.stack")]))
    assert [type(result) for result in results] == [Prediction, Prediction, Failure]


def test_csv_rows_name_every_frame(scans: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", str(scans), "--csv"]) == 0
    names = [Path(row.partition(",")[0]).name for row in capfd.readouterr().out.splitlines()[1:]]
    assert names == ["IM0001-0", "IM0001-1", "head.stack-0", "head.stack-1", "head.stack-2", "z.jpg"]


def test_resume_continues_inside_a_stack(scans: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    journal = tmp_path / "out.jsonl"
    command = ["predict", str(scans), "--resume", str(journal)]
    assert run(command) == 0
    lines = journal.read_text().splitlines(keepends=True)
    assert _keys(_lines("".join(lines))) == EXPECTED
    journal.write_text("".join(lines[:3]))  # killed after the first frame of the second stack
    capfd.readouterr()
    assert run(command) == 0
    assert _keys(_lines(journal.read_text())) == EXPECTED
    assert capfd.readouterr().err == "mri-edge: 1 scan has a result already\n"
    assert run(command) == 0
    assert capfd.readouterr().err == "mri-edge: 3 scans have a result already\n"
    assert _keys(_lines(journal.read_text())) == EXPECTED


def test_every_frame_has_its_own_heatmap(scans: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", str(scans), "--json", "--model", "small", "--heatmap", str(tmp_path / "why")]) == 0
    named = [Path(record["heatmap"]).name for record in _lines(capfd.readouterr().out)]
    stacks = ["IM0001-0", "IM0001-1", "head.stack-0", "head.stack-1", "head.stack-2"]
    assert named == [f"{name}.png" for name in [*stacks, "z.jpg"]]
    assert sorted(path.name for path in (tmp_path / "why").iterdir()) == sorted(named)


def test_watch_writes_a_result_for_every_frame(scans: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["watch", str(scans), "--out", str(out), "--once", "--settle", "0", "--model", "small"]
    assert run([*command, "--heatmap", "--json"]) == 0
    records = _lines(capfd.readouterr().out)
    assert sorted(_keys(records), key=str) == sorted(EXPECTED, key=str)
    results = sorted(path.name for path in (out / "results").iterdir())
    names = ["IM0001-0", "IM0001-1", "head.stack-0", "head.stack-1", "head.stack-2", "z.jpg"]
    assert results == sorted(f"{name}.json" for name in names)
    assert sorted(path.name for path in (out / "heatmaps").iterdir()) == sorted(f"{name}.png" for name in names)
    assert sorted(path.name for path in (out / "done").iterdir()) == ["IM0001", "head.stack", "z.jpg"]
    assert {record["moved_to"] for record in records} == {"done/IM0001", "done/head.stack", "done/z.jpg"}


def test_result_of_a_frame_never_replaces_the_result_of_a_scan_with_the_same_name(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (scans / "head.stack-1").write_bytes((EXAMPLES / "phantom-2.jpg").read_bytes())
    assert run(["watch", str(scans), "--out", str(out), "--once", "--settle", "0"]) == 0
    results = [json.loads(path.read_text()) for path in (out / "results").iterdir()]
    assert len(results) == len(EXPECTED) + 1
    assert len({(record["sha256"], record.get("index")) for record in results}) == len(EXPECTED) + 1


def test_reader_is_imported_only_if_no_earlier_reader_claims_the_file(stack_reader: None) -> None:
    readers.load(EXAMPLES / "phantom-1.jpg")
    assert MODULE not in sys.modules
    assert readers.suffixes()[-1] == ".stack"
    assert MODULE in sys.modules
