"""Results for DICOM files: the record of what was used, the options of the caller, no identifiers."""

from __future__ import annotations

import json
import logging
import pickle
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mri_edge.bundles.bundle import Bundle
from mri_edge.cli import run
from mri_edge.errors import InputError, UsageError
from mri_edge.inference.classifier import Classifier
from mri_edge.inference.prediction import Failure, Prediction
from mri_edge.scans.options import ReadOptions
from mri_edge.testing import FakeEngine

pytest.importorskip("pydicom")
sys.path.insert(0, str(Path(__file__).parents[1] / "scans"))
from dicom_samples import SECRET, make, save

SCHEMA = json.loads(files("mri_edge").joinpath("inference", "result.schema.json").read_text(encoding="utf-8"))


def _check_schema(record: dict[str, object]) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="needs the group 'dev'")
    jsonschema.validate(record, SCHEMA)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "IM0001"
    path.write_bytes(save(make()))
    return path


def _bright(bundle: Path, reading: ReadOptions, threshold: float | None = None) -> Classifier:
    """A classifier whose probability is the mean gray level."""
    opened = Bundle.open(bundle)
    if threshold is not None:
        object.__setattr__(opened.manifest, "threshold", threshold)
    height, width = opened.manifest.preprocessing.height, opened.manifest.preprocessing.width
    return Classifier(opened, opened.manifest.artifacts[0], FakeEngine((height, width, 3)), reading=reading)


def test_a_result_says_what_was_used_and_no_name(tiny_bundle: Path, scan: Path) -> None:
    with Classifier.load(tiny_bundle) as classifier:
        record = classifier.predict(scan).to_dict()
    _check_schema(record)
    assert record["dicom"] == {
        "sop": "1.2.3.4",
        "series": "1.2.3",
        "study": "1.2",
        "frame": 1,
        "plane": "axial",
        "position": 12.5,
        "window": {"center": 1500.0, "width": 3000.0, "function": "LINEAR", "from": "file"},
        "rescale": {"slope": 1.0, "intercept": 0.0},
    }
    text = json.dumps(record)
    assert SECRET not in text
    assert "1970" not in text


def test_a_dataset_and_bytes_get_the_same_answer(tiny_bundle: Path, scan: Path) -> None:
    with Classifier.load(tiny_bundle) as classifier:
        answers = [classifier.predict(source) for source in (scan, scan.read_bytes(), make())]
    assert len({answer.probability for answer in answers}) == 1
    assert [answer.source for answer in answers] == [str(scan), None, None]


def test_options_of_a_classifier_survive_pickling(tiny_bundle: Path, scan: Path) -> None:
    with Classifier.load(tiny_bundle, window="400,100", any_modality=True) as classifier:
        again = pickle.loads(pickle.dumps(classifier))  # noqa: S301 (made on the line itself)
    with again:
        assert again.predict(scan).metadata["dicom"]["window"]["from"] == "option"
        assert again.predict(make(Modality="CT")).metadata["dicom"]["window"]["center"] == 400


def test_frames_of_one_file_are_results_of_their_own(tiny_bundle: Path, tmp_path: Path) -> None:
    pixels = np.stack([np.full((128, 128), value, np.uint16) for value in (100, 1000, 2900)])
    (tmp_path / "volume.dcm").write_bytes(save(make(pixels)))
    with _bright(tiny_bundle, ReadOptions()) as classifier:
        results = list(classifier.predict_batches([str(tmp_path / "volume.dcm")]))
        with pytest.raises(InputError, match="3 frames"):
            classifier.predict(tmp_path / "volume.dcm")
    assert all(isinstance(result, Prediction) for result in results)
    assert [result.index for result in results] == [0, 1, 2]
    assert [result.probability for result in results] == sorted(result.probability for result in results)


def test_a_file_that_ends_early_gives_the_frames_before(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.dcm"
    path.write_bytes(save(make(Modality="CT")))
    with Classifier.load(tiny_bundle) as classifier:
        [result] = classifier.predict_batches([str(path)])
    assert isinstance(result, Failure)
    _check_schema(result.to_dict())
    assert result.error.code == "not_mr"


def test_an_answer_that_depends_on_the_window_gets_a_warning(tiny_bundle: Path, tmp_path: Path) -> None:
    ramp = np.tile(np.arange(128, dtype=np.uint16), (128, 1))
    # The file's window makes it 0.40 bright on average, percentiles make it 0.50.
    (tmp_path / "a.dcm").write_bytes(save(make(ramp, WindowCenter=80, WindowWidth=160)))
    with _bright(tiny_bundle, ReadOptions(), 0.45) as classifier:
        answer = classifier.predict(tmp_path / "a.dcm")
        assert [warning.code for warning in answer.warnings] == ["display_sensitive"]
        assert answer.warnings[0].value == pytest.approx(0.5, abs=0.02)
        assert "display_sensitive" not in str(classifier.predict((tmp_path / "a.dcm").read_bytes()).warnings)
    with _bright(tiny_bundle, ReadOptions(), 0.2) as classifier:
        assert not classifier.predict(tmp_path / "a.dcm").warnings  # both on one side
    with _bright(tiny_bundle, ReadOptions("80,160"), 0.45) as classifier:
        assert not classifier.predict(tmp_path / "a.dcm").warnings  # the caller has decided


@pytest.mark.parametrize("form", ["--json", "--csv", None])
def test_predict_takes_the_options(
    tiny_bundle: Path, scan: Path, capsys: pytest.CaptureFixture[str], form: str | None
) -> None:
    options = [form] if form else []
    assert run(["predict", str(scan), "--model", str(tiny_bundle), "--window", "400,100", *options]) == 0
    out, err = capsys.readouterr()
    assert SECRET not in out + err
    if form == "--json":
        assert json.loads(out)["dicom"]["window"]["center"] == 400
    scan.write_bytes(save(make(Modality="CT")))
    assert run(["predict", str(scan), "--model", str(tiny_bundle)]) == 1
    assert run(["predict", str(scan), "--model", str(tiny_bundle), "--any-modality"]) == 0
    assert run(["predict", str(scan), "--model", str(tiny_bundle), "--window", "wide"]) == 2


@pytest.mark.parametrize("by", ["slice", "series", "study"])
def test_a_journal_keeps_to_one_window(
    tiny_bundle: Path, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], by: str
) -> None:
    journal = tmp_path / "out.jsonl"
    command = ["predict", str(scan), "--model", str(tiny_bundle), "--by", by, "--resume", str(journal)]
    command += ["--plane", "any"] if by != "slice" else []
    assert run([*command, "--window", "400,100"]) == 0
    before = journal.read_bytes()
    assert json.loads(before)["window_option"] == "400,100"
    assert run([*command, "--window", "400.0,100"]) == 0
    for other in ("file", "auto", "400,101"):
        capsys.readouterr()
        assert run([*command, "--window", other]) == 2
        assert f"with --window 400,100, but this run has --window {other}" in capsys.readouterr().err
    assert journal.read_bytes() == before


def test_a_journal_of_pictures_takes_any_window(tiny_bundle: Path, tmp_path: Path) -> None:
    Image.new("L", (200, 200), 90).save(tmp_path / "a.png")
    command = ["predict", str(tmp_path / "a.png"), "--model", str(tiny_bundle), "--resume", str(tmp_path / "o.jsonl")]
    assert run([*command, "--window", "auto"]) == 0
    assert run(command) == 0
    assert "window_option" not in (tmp_path / "o.jsonl").read_text()


def test_the_file_of_defaults_sets_the_window(
    tiny_bundle: Path, scan: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scan.parent)
    Path("mri-edge.toml").write_text('[predict]\nwindow = "300,200"\nany-modality = true\n')
    assert run(["predict", str(scan), "--model", str(tiny_bundle), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["dicom"]["window"]["center"] == 300
    assert "window='300,200'" in err


def test_watch_reads_files_without_a_suffix(tiny_bundle: Path, scan: Path, tmp_path: Path) -> None:
    incoming, out = tmp_path / "in", tmp_path / "out"
    incoming.mkdir()
    scan.rename(incoming / "IM0001")
    arguments = ["watch", str(incoming), "--out", str(out), "--once", "--settle", "0", "--every", "0.05"]
    assert run([*arguments, "--model", str(tiny_bundle), "--window", "auto"]) == 0
    [result] = (out / "results").glob("*.json")
    record = json.loads(result.read_text())
    _check_schema(record)
    assert record["dicom"]["window"]["from"] == "percentiles"
    assert SECRET not in result.read_text()


def test_nothing_of_pydicom_reaches_a_log(
    tiny_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "odd.dcm"
    path.write_bytes(save(make()).replace(b"1.2.3.4\0", b"Zzyzx^Q\0"))
    with caplog.at_level(logging.DEBUG), Classifier.load(tiny_bundle) as classifier:
        caplog.clear()
        record = classifier.predict(path).to_dict()
    assert record["dicom"]["sop"] is None
    assert "Zzyzx" not in caplog.text + "".join(capfd.readouterr()) + json.dumps(record)


def test_heatmap_names_hold_no_identifier(tiny_bundle: Path, scan: Path) -> None:
    with _bright(tiny_bundle, ReadOptions()) as classifier:
        answer = classifier.predict(scan, keep_pixels=True)
    assert answer.pixels is not None
    Image.fromarray(np.ascontiguousarray(answer.pixels))
    assert SECRET not in repr(answer)


@pytest.mark.parametrize("kind", ["dataset", "bytes", "number", "one dataset"])
def test_a_series_is_given_by_paths(tiny_bundle: Path, kind: str) -> None:
    dataset = make()
    given = {"dataset": [dataset], "bytes": [b"IM0001"], "number": [1], "one dataset": dataset}[kind]
    with (
        Classifier.load(tiny_bundle) as classifier,
        pytest.raises(UsageError, match="predict_series takes paths") as it,
    ):
        list(classifier.predict_series(given))
    assert SECRET not in str(it.value)
