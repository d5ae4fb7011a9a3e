"""Read the header of a NIfTI file, and refuse before any allocation what is no scan of the head or too large.

The layouts are those of ``nifti1.h`` and ``nifti2.h`` (nifti.nimh.nih.gov). nibabel parses the header and its
orientation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_edge.errors import InputError
from mri_edge.scans.geometry import View, radiological_view
from mri_edge.scans.intensity import Rescale

from ._picture_limits import check_size, damaged, too_large

HEADER_BYTES = {1: 348, 2: 540}  # by version
MAX_VOXELS = 1 << 28  # 645 voxels a side; a slice that runs against the file's order takes a byte for each in memory
MAX_BYTES = 1 << 30  # as stored, after decompression
_MAX_OFFSET = 16 << 20  # bytes before the voxels; header extensions have some kilobytes

# A volume whose largest spacing exceeds the next one by more was acquired in slices across that axis.
_THICK = 1.5

_DTYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
_REFUSED_TYPES = {
    1: "1-bit voxels",
    32: "complex voxels",
    128: "RGB voxels",
    1536: "128-bit voxels",
    1792: "complex voxels",
    2048: "complex voxels",
    2304: "RGBA voxels",
}
_LABELS, _VECTORS, _STATISTICS = 1002, range(1003, 1009), range(2, 25)  # intent_code


@dataclass(frozen=True)
class Volume:
    """What the header says about a volume, and how it is cut into slices.

    Attributes
    ----------
    shape
        Voxels along the three axes in the file's order; the first varies fastest.
    dtype
        Of the stored values, with the file's byte order.
    offset
        Bytes before the first voxel, after decompression.
    rescale
        From stored to real values.
    display
        The range that the header asks viewers to show (cal_min, cal_max), or None.
    affine
        (4, 4), from voxel indices to mm in LPS+.
    oriented
        Whether the file states its orientation. Otherwise the usual one is assumed: x to the left, y to the front, z to
        the head.
    axis
        The axis across the slices: 0, 1 or 2.
    view
        How a slice is turned to the radiological view.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    offset: int
    rescale: Rescale
    display: tuple[float, float] | None
    affine: NDArray[np.float64]
    oriented: bool
    axis: int
    view: View

    @property
    def count(self) -> int:
        """The number of slices."""
        return self.shape[self.axis]

    @property
    def bytes_per_plane(self) -> int:
        """Stored bytes of the voxels that share an index along the last axis."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns of a slice as stored."""
        columns, rows = (length for axis, length in enumerate(self.shape) if axis != self.axis)
        return rows, columns

    @property
    def orientation(self) -> tuple[float, ...]:
        """Unit directions in LPS+ of a row and of a column of the stored slice, 6 numbers, as in DICOM."""
        row, column = _across(self.affine, self.axis)
        return tuple(float(value) for step in (row, column) for value in step / np.linalg.norm(step))

    @property
    def spacing(self) -> tuple[float, float]:
        """Distance in mm between the rows and between the columns of the stored slice."""
        row, column = _across(self.affine, self.axis)
        return float(np.linalg.norm(column)), float(np.linalg.norm(row))

    def position(self, index: int) -> tuple[float, ...]:
        """Return the center of the first voxel of a slice, in mm in LPS+."""
        return tuple(float(value) for value in self.affine[:3, 3] + index * self.affine[:3, self.axis])


def version_of(head: bytes) -> int | None:
    """Return 1 or 2 for the beginning of a NIfTI file, single or of a pair, else None."""
    if head[344:348] in (b"n+1\0", b"ni1\0") and head[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c"):
        return 1
    if head[4:8] in (b"n+2\0", b"ni2\0") and head[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c"):
        return 2
    return None


def parse(block: bytes, name: str) -> Volume:
    """Parse and check a header: the first 348 or 540 bytes of the decompressed file.

    Raises
    ------
    InputError
        "damaged", "unsupported" or "too_large"; also if nibabel is not installed.
    """
    try:
        from nibabel.nifti1 import Nifti1Header
        from nibabel.nifti2 import Nifti2Header
    except ImportError as error:
        raise InputError(
            f"{name}: reading NIfTI needs nibabel, which is not installed",
            "Install it: pip install 'mri-edge[nifti]'",
            code="unsupported",
        ) from error
    version = version_of(block)
    if version is None or len(block) < HEADER_BYTES[version]:
        raise damaged(name, "it ends inside its header" if version else "it has no NIfTI header")
    kind: Any = Nifti1Header if version == 1 else Nifti2Header
    header = kind(block[: HEADER_BYTES[version]], check=False)
    _check_kind(header, name)
    shape = _shape(header, name)
    dtype = _dtype(header, name)
    if math.prod(shape) * dtype.itemsize > MAX_BYTES:
        size = math.prod(shape) * dtype.itemsize
        raise too_large(name, f"{size / 1e6:,.0f} MB of voxels", size, MAX_BYTES, "Convert it to 16-bit integers")
    affine, oriented = _affine(header)
    axis = _slice_axis(shape, affine)
    view = radiological_view(*_across(affine, axis))
    if view is None:  # the axes are far from perpendicular
        affine, oriented = _assumed_affine(header), False
        axis = _slice_axis(shape, affine)
        view = radiological_view(*_across(affine, axis)) or View("axial")
    volume = Volume(
        shape, dtype, _offset(header, version, name), _rescale(header), _display(header), affine, oriented, axis, view
    )
    check_size(name, *volume.matrix)
    return volume


def _check_kind(header: Any, name: str) -> None:
    magic = bytes(header["magic"])[:2]
    if magic == b"ni":
        raise InputError(
            f"{name}: a NIfTI pair of .hdr and .img is not supported",
            "Save it as one .nii file, for instance with FSL: fslchfiletype NIFTI SCAN",
            code="unsupported",
        )
    intent = int(header["intent_code"])
    kind = None
    if intent == _LABELS:
        kind = "a map of labels"
    elif intent in _VECTORS:
        kind = "a map of vectors or matrices"
    elif intent in _STATISTICS:
        kind = "a statistical map"
    if kind:
        raise InputError(
            f"{name}: {kind} (intent code {intent}) and no scan", "Pass the scan itself", code="unsupported"
        )


def _shape(header: Any, name: str) -> tuple[int, int, int]:
    count, *lengths = (int(length) for length in header["dim"])
    if not 1 <= count <= 7:
        raise damaged(name, f"it declares {count} dimensions")
    shape = lengths[:count]
    if min(shape) < 1:
        raise damaged(name, f"its size is {_times(shape)} voxels")
    if count < 2:
        raise InputError(f"{name}: a row of {shape[0]} voxels and no scan", code="unsupported")
    volumes = math.prod(shape[3:])
    if volumes > 1:
        raise InputError(
            f"{name}: holds {volumes:,} volumes ({_times(shape)} voxels), one is needed",
            "Save the volume to be read as a file of its own, for instance with FSL: fslroi SCAN VOLUME 0 1",
            code="unsupported",
            value=volumes,
            limit=1,
        )
    x, y, z = [*shape, 1][:3]
    if x * y * z > MAX_VOXELS:
        hint = f"The limit is {MAX_VOXELS:,} voxels: crop it or make it smaller"
        raise too_large(name, f"{_times([x, y, z])} voxels", x * y * z, MAX_VOXELS, hint)
    return x, y, z


def _times(lengths: list[int]) -> str:
    return " x ".join(map(str, lengths))


def _dtype(header: Any, name: str) -> np.dtype[Any]:
    code = int(header["datatype"])
    if code not in _DTYPES:
        kind = _REFUSED_TYPES.get(code, f"voxels of the data type {code}")
        raise InputError(
            f"{name}: {kind} are not supported", "Save it as 16-bit integers or 32-bit floats", code="unsupported"
        )
    return np.dtype(_DTYPES[code]).newbyteorder(header.endianness)


def _offset(header: Any, version: int, name: str) -> int:
    offset = float(header["vox_offset"])
    if not HEADER_BYTES[version] <= offset <= _MAX_OFFSET:
        raise damaged(name, f"its voxels begin at byte {offset:g}")
    return int(offset)


def _rescale(header: Any) -> Rescale:
    """Return slope and intercept; a slope of 0 means that there is none."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not math.isfinite(slope) or not math.isfinite(intercept):
        return Rescale()
    return Rescale(slope, intercept)


def _display(header: Any) -> tuple[float, float] | None:
    low, high = float(header["cal_min"]), float(header["cal_max"])
    return (low, high) if math.isfinite(high - low) and high > low else None


def _affine(header: Any) -> tuple[NDArray[np.float64], bool]:
    """Return the affine to LPS+, and whether the file states its orientation."""
    from nibabel.spatialimages import HeaderDataError

    if int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0:
        try:
            with np.errstate(all="ignore"):
                affine = _to_lps(header.get_best_affine())
        except (HeaderDataError, ValueError):  # a quaternion that is no rotation
            return _assumed_affine(header), False
        if _is_usable(affine):
            return affine, True
    return _assumed_affine(header), False


def _assumed_affine(header: Any) -> NDArray[np.float64]:
    """Return the affine of a file without an orientation: x to the left, y to the front, z to the head, as nibabel."""
    spacing = [abs(float(length)) for length in header["pixdim"][1:4]]
    affine = np.diag([length if 0 < length < math.inf else 1.0 for length in spacing] + [1.0])
    affine[1, 1] *= -1
    return affine if _is_usable(affine) else np.diag([1.0, -1.0, 1.0, 1.0])


def _to_lps(affine: Any) -> NDArray[np.float64]:
    converted = np.array(affine, np.float64)
    converted[:2] *= -1
    return converted


def _is_usable(affine: NDArray[np.float64]) -> bool:
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.isfinite(affine).all() and (lengths > 1e-6).all() and (lengths < 1e6).all())


def _across(affine: NDArray[np.float64], axis: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the steps along a row and a column of a slice: of the faster and of the slower axis."""
    row, column = (affine[:3, other] for other in range(3) if other != axis)
    return row, column


def _slice_axis(shape: tuple[int, int, int], affine: NDArray[np.float64]) -> int:
    """Return the axis across the slices.

    A volume with thick slices is shown in the slices in which it was acquired, because others would be blurred. One
    with nearly equal spacings is cut into axial slices.
    """
    single = [axis for axis in range(3) if shape[axis] == 1]
    if len(single) == 1:
        return single[0]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    widest = int(spacing.argmax())
    if spacing[widest] > _THICK * max(spacing[axis] for axis in range(3) if axis != widest):
        return widest
    units = affine[:3, :3] / spacing
    normals = [np.cross(*(units[:, other] for other in range(3) if other != axis)) for axis in range(3)]
    return int(np.argmax([abs(normal[2]) for normal in normals]))
