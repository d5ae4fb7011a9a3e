"""Damaged and odd NIfTI and DICOM files give frames or InputError, within limits of time and memory."""

from __future__ import annotations

import io
import json
import struct
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mri_edge.errors import InputError
from mri_edge.scans import readers
from mri_edge.scans.options import ReadOptions
from mri_edge.scans.readers import dicom
from mri_edge.scans.series import group

sys.path.insert(0, str(Path(__file__).parents[1] / "hostile"))
import fuzz_scans as fuzzer
import fuzzing

SECRET = "Doe^Jane"  # noqa: S105 (the patient's name)


@pytest.mark.parametrize(("kind", "library"), [("nifti", "nibabel"), ("dicom", "pydicom")])
def test_1000_mutations_stay_within_the_limits(kind: str, library: str) -> None:
    pytest.importorskip(library, reason=f"needs the extra '{kind}'")
    outcome = fuzzing.run(fuzzer.MUTATIONS[kind], fuzzer.read, 1000)
    assert outcome.broken == []
    assert outcome.answers["pixels"] > 150  # not all stop at the header
    assert outcome.answers["damaged"] > 50


# What a header may say about a picture. Each may be missing, or hold the wrong thing.
KEYWORDS = [
    "BitsAllocated", "BitsStored", "BurnedInAnnotation", "Columns", "EchoNumbers", "EchoTime", "FrameOfReferenceUID",
    "HighBit", "ImageOrientationPatient", "ImagePositionPatient", "ImageType", "InstanceNumber",
    "LossyImageCompression", "Manufacturer", "Modality", "ModalityLUTSequence", "NumberOfFrames",
    "PatientID", "PatientName", "PerFrameFunctionalGroupsSequence", "PhotometricInterpretation",
    "PixelAspectRatio", "PixelData", "PixelPaddingRangeLimit", "PixelPaddingValue", "PixelRepresentation",
    "PixelSpacing", "PlanarConfiguration", "PresentationLUTShape", "RescaleIntercept", "RescaleSlope", "RescaleType",
    "Rows", "SOPClassUID", "SOPInstanceUID", "SamplesPerPixel", "SeriesInstanceUID", "SharedFunctionalGroupsSequence",
    "SliceThickness", "SpecificCharacterSet", "StudyInstanceUID", "VOILUTFunction", "VOILUTSequence", "WindowCenter",
    "WindowWidth",
]  # fmt: skip
VRS = [
    "AE", "AS", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO", "LT", "OB", "OW", "PN", "SH", "SL", "SQ", "SS",
    "ST", "TM", "UC", "UI", "UL", "UN", "UR", "US", "UT",
]  # fmt: skip
VALUES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [b"", b" ", b"\0", b"1\\2\\3", b"nan", b"inf", b"-1", b"1e400", b"1e308", b"1.00000 ", b"0\\0", b"\\\\\\"]
    ),
    st.lists(st.sampled_from(["1e308", "-1e308", "1e30", "-1e30", "1e-308", "0", "1"]), min_size=1, max_size=6).map(
        lambda values: "\\".join(values).encode()
    ),
    st.sampled_from([b"ISO_IR 192", b"ISO 2022 IR 87", b"ISO_IR 999", b"\\ISO 2022 IR 13", b"GB18030"]),
    st.sampled_from([b"MR", b"CT", b"MONOCHROME1", b"RGB", b"PALETTE COLOR", b"YBR_FULL", b"INVERSE", b"SIGMOID"]),
    st.floats().map(lambda value: np.float64(value).tobytes()),
    st.integers(0, 2**32 - 1).map(lambda value: np.uint32(value).tobytes()),
    st.integers(0, 2**16 - 1).map(lambda value: np.uint16(value).tobytes()),
    st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=7).map(
        lambda values: "\\".join(f"{value:.6g}" for value in values).encode()
    ),
)
CHANGES = st.tuples(st.sampled_from(KEYWORDS), st.one_of(st.none(), st.tuples(st.sampled_from(VRS), VALUES)))


@cache
def _elements(enhanced: bool) -> tuple[bytes, dict[int, bytes]]:
    """Return the beginning of a valid file, and its encoded elements by their tags."""
    from pydicom import dcmread
    from pydicom.dataset import Dataset
    from pydicom.uid import ExplicitVRLittleEndian

    image = dcmread(io.BytesIO(fuzzer.dicom_seeds()[-3 if enhanced else 0]))
    assert image.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    image.PatientName = SECRET
    empty = Dataset()
    empty.file_meta = image.file_meta
    beginning = _saved(empty)
    elements = {}
    for element in image:
        single = Dataset()
        single.file_meta = image.file_meta
        single[element.tag] = element
        elements[int(element.tag)] = _saved(single)[len(beginning) :]
    return beginning, elements


def _saved(image: Any) -> bytes:
    file = io.BytesIO()
    image.save_as(file, enforce_file_format=False)
    return file.getvalue()


def _encoded(tag: int, vr: str, value: bytes) -> bytes:
    """Encode an element in Explicit VR Little Endian (PS3.5 7.1.2), whether or not the VR is right for it."""
    value += b" " * (len(value) % 2)
    long = vr in ("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV")
    length = struct.pack("<2xI" if long else "<H", len(value))
    return struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr.encode()) + length + value


@given(enhanced=st.booleans(), changes=st.lists(CHANGES, min_size=1, max_size=6))
@settings(max_examples=400, deadline=None)
def test_any_dicom_header_is_read_or_refused(enhanced: bool, changes: list[tuple[str, Any]]) -> None:
    pytest.importorskip("pydicom", reason="needs the extra 'dicom'")
    from pydicom.datadict import tag_for_keyword

    beginning, valid = _elements(enhanced)
    elements = dict(valid)
    for keyword, change in changes:
        tag = tag_for_keyword(keyword)
        if change is None:
            elements.pop(tag, None)
        else:
            elements[tag] = _encoded(tag, *change)
    content = beginning + b"".join(elements[tag] for tag in sorted(elements))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for options in (ReadOptions(), ReadOptions("auto", any_modality=True)):
            said = _said_about(content, options) + _inspected(content, options)
            assert "Doe" not in said
            assert "\n" not in said


def _said_about(content: bytes, options: ReadOptions) -> str:
    """Return everything that a user may see about a scan."""
    try:
        frames = list(readers.read(content, options))
    except InputError as error:
        json.dumps([error.value, error.limit], allow_nan=False)
        return str(error)
    assert {frame.pixels.dtype for frame in frames} == {np.dtype(np.uint8)}
    json.dumps([frame.metadata["dicom"] for frame in frames], allow_nan=False)
    return repr([(frame.metadata, frame.warnings) for frame in frames])


def _inspected(content: bytes, options: ReadOptions) -> str:
    """Return everything that `mri-edge inspect` may say about a scan."""
    try:
        found = group(dicom.slice_facts(content, options))
    except InputError as error:
        return str(error)
    json.dumps([(series.distance, series.positions) for series in found], allow_nan=False)
    return repr(found)
