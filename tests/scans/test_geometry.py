"""Slices are shown in the radiological view, however they are stored; dcm2niix is the second opinion."""

from __future__ import annotations

import itertools
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mri_edge.errors import InputError
from mri_edge.scans.geometry import (
    View,
    position_along_normal,
    radiological_view,
    square_pixels,
)

# The directions in LPS+ that point right and down on the screen.
SCREEN = {
    "axial": ((1, 0, 0), (0, 1, 0)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
}
# The 48 ways to store a volume: three axes in any order, each with either sign.
STORED = [
    np.array([np.eye(3)[axis] * sign for axis, sign in zip(axes, signs, strict=True)])
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
angles = st.floats(-math.pi, math.pi)


def _rotation(x: float, y: float, z: float) -> NDArray[np.float64]:
    turned = np.eye(3)
    for axis, angle in enumerate((x, y, z)):
        plane = np.eye(3)
        first, second = (other for other in range(3) if other != axis)
        plane[[first, first, second, second], [first, second, first, second]] = (
            math.cos(angle),
            -math.sin(angle),
            math.sin(angle),
            math.cos(angle),
        )
        turned = plane @ turned
    return turned


def _shown(view: View, row: NDArray, column: NDArray) -> tuple[NDArray, NDArray]:
    """Return the directions that point right and down after the turn, measured on a picture of coordinates."""
    indices = np.mgrid[0:5, 0:7]
    coordinates = view.turn(indices[1][..., None] * row + indices[0][..., None] * column)
    return coordinates[0, 1] - coordinates[0, 0], coordinates[1, 0] - coordinates[0, 0]


@pytest.mark.parametrize(
    "stored", STORED, ids=lambda axes: "".join("lpsLPS"[int(3 * (r.sum() > 0) + np.abs(r).argmax())] for r in axes)
)
def test_every_orientation_is_shown_radiologically(stored: NDArray) -> None:
    column, row, normal = stored
    view = radiological_view(row, column)
    assert view is not None
    assert view.plane == ("sagittal", "coronal", "axial")[np.abs(normal).argmax()]
    right, down = _shown(view, row, column)
    np.testing.assert_array_equal(right, SCREEN[view.plane][0])
    np.testing.assert_array_equal(down, SCREEN[view.plane][1])


@example(stored=np.eye(3), turn=(2.5625, 0.6875, 2.5625))  # oblique in two ways, and nearly at 45 degrees
@given(stored=st.sampled_from(STORED), turn=st.tuples(angles, angles, angles))
@settings(max_examples=300, deadline=None)
def test_oblique_slices_are_shown_as_near_to_the_view_as_right_angles_allow(
    stored: NDArray, turn: tuple[float, float, float]
) -> None:
    column, row, _ = stored @ _rotation(*turn)
    view = radiological_view(row, column)
    assert view is not None
    right, down = _shown(view, row, column)
    wanted = [np.array(direction) for direction in SCREEN[view.plane]]
    # No other turn of the same slice points more to the screen's directions. Only turns that do not mirror count.
    across, along = np.cross(right, down), np.cross(*wanted)
    assert across @ along > 0
    best = max(
        r @ wanted[0] + d @ wanted[1] for r, d in ((right, down), (-right, -down), (down, -right), (-down, right))
    )
    assert right @ wanted[0] + down @ wanted[1] == pytest.approx(best, abs=1e-3)
    assert abs(across @ along) >= 1 / math.sqrt(3) - 1e-3


@given(turn=st.tuples(angles, angles, angles), between=st.floats(math.radians(31), math.radians(149)))
@settings(max_examples=300, deadline=None)
def test_no_slice_is_mirrored_even_if_its_directions_are_not_perpendicular(
    turn: tuple[float, float, float], between: float
) -> None:
    row, other, _ = _rotation(*turn)
    column = math.cos(between) * row + math.sin(between) * other
    view = radiological_view(row, column)
    assert view is not None
    right, down = _shown(view, row, column)
    wanted = np.cross(*(np.array(direction) for direction in SCREEN[view.plane]))
    assert np.cross(right, down) @ wanted > 0


@given(turn=st.tuples(angles, angles, angles), first=st.floats(-500, 500), step=st.floats(0.1, 20))
@settings(max_examples=200, deadline=None)
def test_positions_grow_along_the_plane_axis_whichever_side_is_stored(
    turn: tuple[float, float, float], first: float, step: float
) -> None:
    row, column, normal = _rotation(*turn)
    view = radiological_view(row, column)
    assert view is not None
    axis = {"sagittal": 0, "coronal": 1, "axial": 2}[view.plane]
    normal = normal * math.copysign(1, normal[axis])
    start = np.array([3.0, -20.0, 7.0])
    for stored in ((row, column), (column, row), (-row, column)):
        at = [position_along_normal(*stored, start + (first + index * step) * normal) for index in range(2)]
        assert None not in at
        assert at[1] - at[0] == pytest.approx(step, rel=1e-6, abs=1e-6)


def test_text_that_was_rounded_does_not_change_the_plane_of_a_slice_at_45_degrees() -> None:
    half = math.sqrt(0.5)
    for noise in (-2e-6, 0, 2e-6):
        view = radiological_view((1, 0, 0), (0, half + noise, -half))
        assert view == View("axial")


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ((0, 0, 0), (0, 1, 0)),
        ((1, 0, 0), (1, 0, 0)),
        ((1, 0, 0), (-1, 1e-3, 0)),
        ((math.nan, 0, 0), (0, 1, 0)),
        ((math.inf, 0, 0), (0, 1, 0)),
        ((1.7e308, 1.7e308, 1.7e308), (0, 1, 0)),
        ((1, 0), (0, 1)),
        ((), ()),
    ],
)
def test_unusable_directions_have_no_view_and_no_position(row: tuple[float, ...], column: tuple[float, ...]) -> None:
    assert radiological_view(row, column) is None
    assert position_along_normal(row, column, (0, 0, 0)) is None


@given(st.lists(st.floats(), min_size=9, max_size=9))
@settings(max_examples=300, deadline=None)
def test_any_numbers_are_answered(values: list[float]) -> None:
    view = radiological_view(values[:3], values[3:6])
    position = position_along_normal(values[:3], values[3:6], values[6:])
    assert view is None or view.plane in SCREEN
    assert position is None or not math.isnan(position)


def test_unusable_position_is_none() -> None:
    assert position_along_normal((1, 0, 0), (0, 1, 0), (0, 0, math.nan)) is None
    assert position_along_normal((1, 0, 0), (0, 1, 0), ()) is None


def test_view_describes_its_steps_and_turns_the_spacing() -> None:
    assert View("axial").describe() == "as stored"
    assert View("axial", True, True, True).describe() == "transposed, flipped upside down, flipped left to right"
    assert View("axial").turn_spacing((1, 2)) == (1, 2)
    assert View("axial", transpose=True).turn_spacing((1, 2)) == (2, 1)


def _gray(height: int, width: int) -> NDArray[np.uint8]:
    plane = np.linspace(0, 255, height * width).reshape(height, width, 1).astype(np.uint8)
    return np.broadcast_to(plane, (height, width, 3))


def test_unequal_spacings_become_square_pixels_of_the_finer_one() -> None:
    resampled = square_pixels(_gray(20, 30), (3.0, 1.0), "scan")
    assert resampled.shape == (60, 30, 3)
    assert resampled.strides[2] == 0
    assert square_pixels(_gray(20, 30), (1.0, 1.5), "scan").shape == (20, 45, 3)
    color = _gray(20, 30).copy()
    color[..., 1] = 7
    assert (square_pixels(color, (2, 1), "scan")[..., 1] == 7).all()


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 1.009), (0, 1), (-1, 1), (math.nan, 1), (1, math.inf)])
def test_equal_or_meaningless_spacings_leave_the_picture(spacing: tuple[float, float]) -> None:
    picture = _gray(20, 30)
    assert square_pixels(picture, spacing, "scan") is picture


def test_absurd_spacings_are_refused_before_memory_is_taken() -> None:
    with pytest.raises(InputError, match=r"scan: damaged scan \(pixels of 1 x 0.001 mm\)") as caught:
        square_pixels(_gray(20, 30), (1, 0.001), "scan")
    assert caught.value.code == "damaged"
    with pytest.raises(InputError, match="too large, 3000 x 120000 square pixels") as caught:
        square_pixels(_gray(3000, 3000), (40, 1), "scan")
    assert (caught.value.code, caught.value.value) == ("too_large", 360_000_000)
    with pytest.raises(InputError, match="too large, 4 x 98000 square pixels") as caught:
        square_pixels(_gray(2000, 4), (49, 1), "scan")
    assert (caught.value.code, caught.value.limit) == ("too_large", 65_535)


@pytest.mark.parametrize("seed", range(8))
def test_dcm2niix_shows_the_same_picture(seed: int, tmp_path: Path) -> None:
    """dcm2niix stores rows from bottom to top, with an affine. Both stored forms must give one picture."""
    program = shutil.which("dcm2niix")
    if program is None:
        pytest.skip("needs dcm2niix (Debian package dcm2niix)")
    nibabel = pytest.importorskip("nibabel", reason="needs the extra 'nifti'")
    pytest.importorskip("pydicom", reason="needs the extra 'dicom'")
    rng = np.random.default_rng(seed)
    column, row, normal = STORED[rng.integers(len(STORED))] @ _rotation(*rng.uniform(-0.5, 0.5, 3))
    volume = rng.integers(0, 1000, (5, 20, 28)).astype(np.uint16)
    for index, plane in enumerate(volume):
        _save_dicom(tmp_path / f"{index}.dcm", plane, row, column, 3.0 * index * normal, index)
    subprocess.run([program, "-f", "out", str(tmp_path)], check=True, capture_output=True)
    converted = nibabel.load(tmp_path / "out.nii")
    stored = np.asarray(converted.dataobj)
    down, across, through = (np.diag([-1, -1, 1]) @ converted.affine[:3, :3]).T

    ours, theirs = radiological_view(row, column), radiological_view(across, down)
    assert ours is not None
    assert theirs is not None
    assert ours.plane == theirs.plane
    ordered = sorted(range(5), key=lambda index: position_along_normal(row, column, 3.0 * index * normal) or 0)
    axis = {"sagittal": 0, "coronal": 1, "axial": 2}[ours.plane]
    slices = range(5) if through[axis] > 0 else range(4, -1, -1)
    for index, other in zip(ordered, slices, strict=True):
        np.testing.assert_array_equal(ours.turn(volume[index]), theirs.turn(stored[:, :, other]))


def _save_dicom(
    path: Path, pixels: NDArray[np.uint16], row: NDArray, column: NDArray, position: NDArray, index: int
) -> None:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

    scan = Dataset()
    scan.SOPClassUID, scan.SOPInstanceUID = MRImageStorage, f"2.25.1{index}"
    scan.StudyInstanceUID, scan.SeriesInstanceUID, scan.FrameOfReferenceUID = "2.25.2", "2.25.3", "2.25.4"
    scan.Modality, scan.Manufacturer, scan.SeriesNumber, scan.InstanceNumber = "MR", "test", 1, index + 1
    scan.ImageOrientationPatient = [f"{value:.8f}" for value in (*row, *column)]
    scan.ImagePositionPatient = [f"{value:.8f}" for value in position]
    scan.PixelSpacing, scan.SliceThickness = [1, 1], 3
    scan.Rows, scan.Columns = pixels.shape
    scan.SamplesPerPixel, scan.PhotometricInterpretation, scan.PixelRepresentation = 1, "MONOCHROME2", 0
    scan.BitsAllocated, scan.BitsStored, scan.HighBit = 16, 16, 15
    scan.PixelData = pixels.tobytes()
    scan.file_meta = FileMetaDataset()
    scan.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    scan.save_as(path, enforce_file_format=True)
