"""What a DICOM header says about the picture as a whole: its layout, whether it is refused, and warnings.

No message quotes a value of the header, except numbers and words from fixed lists.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from mri_edge.errors import InputError
from mri_edge.scans.checks import ResultWarning
from mri_edge.scans.intensity import Padding

from . import _dicom_values as dicom
from ._dicom_file import NATIVE, Opened, damaged, refused
from ._picture_limits import check_size, too_large

MAX_FRAMES = 1 << 16
_MAX_PIXEL_BYTES = 1 << 33  # of all frames together, uncompressed

RLE = "1.2.840.10008.1.2.5"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
JPEG_LS_NEAR_LOSSLESS = "1.2.840.10008.1.2.4.81"
# Transfer syntaxes that python-gdcm decodes.
GDCM = {
    JPEG_BASELINE: "JPEG Baseline",
    "1.2.840.10008.1.2.4.57": "JPEG Lossless",
    "1.2.840.10008.1.2.4.70": "JPEG Lossless",
    "1.2.840.10008.1.2.4.80": "JPEG-LS",
    JPEG_LS_NEAR_LOSSLESS: "JPEG-LS near-lossless",
    "1.2.840.10008.1.2.4.90": "JPEG 2000",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
}
_NAMES = {
    "1.2.840.10008.1.2": "implicit little-endian",
    "1.2.840.10008.1.2.1": "explicit little-endian",
    "1.2.840.10008.1.2.1.99": "deflated",
    "1.2.840.10008.1.2.2": "explicit big-endian",
    RLE: "RLE",
    **GDCM,
    "1.2.840.10008.1.2.4.51": "JPEG Extended (12 bits)",
    "1.2.840.10008.1.2.4.92": "JPEG 2000 part 2",
    "1.2.840.10008.1.2.4.93": "JPEG 2000 part 2",
    "1.2.840.10008.1.2.4.100": "MPEG-2 video",
    "1.2.840.10008.1.2.4.102": "MPEG-4 video",
    "1.2.840.10008.1.2.4.107": "HEVC video",
    "1.2.840.10008.1.2.4.110": "JPEG XL",
    "1.2.840.10008.1.2.4.111": "JPEG XL",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
    "1.2.840.10008.1.2.4.201": "High-Throughput JPEG 2000",
    "1.2.840.10008.1.2.4.202": "High-Throughput JPEG 2000",
    "1.2.840.10008.1.2.4.203": "High-Throughput JPEG 2000",
}
_CONVERT = "Convert it with dcmtk: dcmdjpeg SCAN converted.dcm"

_MR_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.4",
    "1.2.840.10008.5.1.4.1.1.4.1",
    "1.2.840.10008.5.1.4.1.1.4.4",
}
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and the multi-frame classes below it
_MODALITIES = {
    "CR": "a radiograph",
    "CT": "CT",
    "DX": "a radiograph",
    "ECG": "an electrocardiogram",
    "ES": "endoscopy",
    "KO": "a list of key objects",
    "MG": "mammography",
    "NM": "nuclear medicine",
    "OT": "other",
    "PR": "a presentation state",
    "PT": "PET",
    "RF": "fluoroscopy",
    "RTDOSE": "a radiotherapy dose",
    "RTPLAN": "a radiotherapy plan",
    "RTSTRUCT": "radiotherapy structures",
    "SEG": "a segmentation",
    "SR": "a report",
    "US": "ultrasound",
    "XA": "angiography",
    "XC": "photography",
}
# Values of Image Type and Frame Type after the first two (PS3.3 C.8.3.1.1.1, C.8.13.3.1.1 and what scanners write).
_LOCALIZERS = {"LOCALIZER", "SCOUT"}
_MAPS = {
    **dict.fromkeys(("P", "PHASE", "PHASE MAP", "PHASE_MAP"), "a phase map"),
    **dict.fromkeys(("ADC", "ADC_MAP", "ADC MAP", "EADC", "EXP_ADC"), "an ADC map"),
    **dict.fromkeys(("FA", "FA_MAP", "FRACT_ANISO", "VELOCITY", "FIELD_MAP", "B0 MAP"), "a map"),
    **dict.fromkeys(("T1 MAP", "T1_MAP", "T2 MAP", "T2_MAP", "T2_STAR_MAP", "R2_STAR_MAP"), "a map"),
    **dict.fromkeys(("CBF", "RCBF", "CBV", "RCBV", "MTT", "TTP", "TMAX", "KTRANS"), "a map"),
}
_COMPONENTS = {"PHASE": "a phase map", "IMAGINARY": "the imaginary part of an image"}
_LOCALIZER_WORDS = re.compile(r"\b(locali[sz]ers?|scouts?|survey|3[- ]?plane[- ]?loc)\b|^loc\b", re.IGNORECASE)


@dataclass(frozen=True)
class Layout:
    """How the pixels of a frame are stored (PS3.3 C.7.6.3).

    Attributes
    ----------
    rows, columns, frames
        Size of a frame, and how many there are.
    allocated, stored, high_bit, signed
        Bits of a value; the lowest is ``high_bit - stored + 1``.
    invert
        Whether low values are white.
    padding
        Stored values where nothing was measured, or None.
    """

    rows: int
    columns: int
    frames: int
    allocated: int
    stored: int
    high_bit: int
    signed: bool
    invert: bool
    padding: Padding | None

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame, uncompressed."""
        return self.rows * self.columns * self.allocated // 8


def syntax_name(syntax: str | None) -> str:
    """Return how pixels are stored, for people."""
    return "not given" if syntax is None else _NAMES.get(syntax, "unknown")


def image_type(header: dicom.Header) -> tuple[str, ...]:
    """Return the values of Image Type in capitals."""
    return tuple(value.upper() for value in dicom.texts(header, dicom.IMAGE_TYPE))


def check(opened: Opened, name: str, *, any_modality: bool) -> Layout:
    """Return the layout of a picture that can be classified, without decoding it.

    Raises
    ------
    InputError
        ``code`` is "no_pixels", "not_mr", "mosaic", "localizer", "map", "unsupported", "damaged" or "too_large".
    """
    header = opened.header
    _check_purpose(opened, name, any_modality)
    samples = dicom.whole(header, dicom.SAMPLES) or 1
    photometric = dicom.text(header, dicom.PHOTOMETRIC).upper()
    if samples != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2", ""):
        raise refused(name, "a color picture, such as a screen capture: scans are gray", "unsupported")
    layout = _layout(opened, name, photometric)
    _check_limits(layout, opened, name)
    _check_syntax(opened, name)
    return layout


def _check_purpose(opened: Opened, name: str, any_modality: bool) -> None:
    header = opened.header
    modality = dicom.text(header, dicom.MODALITY).upper()
    kind = f" ({_MODALITIES[modality]})" if modality in _MODALITIES else ""
    if opened.stream is None:
        sop_class = dicom.uid(header, dicom.SOP_CLASS)
        if sop_class in _MR_CLASSES or (sop_class is None and not modality):  # these objects always have pixels
            raise damaged(name, "it ends before its pixels")
        raise refused(name, f"holds no pixels{kind}", "no_pixels", "Leave it out")
    mr = modality == "MR" or (not modality and dicom.uid(header, dicom.SOP_CLASS) in _MR_CLASSES)
    if not mr and not any_modality:
        reason = f"not MR{kind}" if modality else "does not say that it is MR"
        raise refused(name, reason, "not_mr", "--any-modality reads it all the same")
    if not any_modality and (dicom.uid(header, dicom.SOP_CLASS) or "").startswith(_SECONDARY_CAPTURE):
        reason = "a secondary capture, such as a picture of a screen"
        raise refused(name, reason, "not_mr", "--any-modality reads it all the same")
    values = image_type(header)
    if "MOSAIC" in values:
        hint = "Convert it with dcm2niix, which separates the slices"
        raise refused(name, "a mosaic of slices", "mosaic", hint)
    described = " ".join((*dicom.texts(header, dicom.SERIES_DESCRIPTION), *dicom.texts(header, dicom.PROTOCOL_NAME)))
    if _LOCALIZERS & set(values) or (mr and _LOCALIZER_WORDS.search(described.replace("_", " "))):
        raise refused(name, "a localizer", "localizer", "Leave it out: it only plans the scan")
    if refusal := map_refusal(values, name, dicom.text(header, dicom.COMPLEX_COMPONENT)):
        raise refusal


def map_refusal(values: tuple[str, ...], name: str, component: str = "") -> InputError | None:
    """Return the refusal of a map, by the Image Type of a file or the Frame Type of a frame, or None."""
    found = next((_MAPS[value] for value in values[2:] if value in _MAPS), None) or _COMPONENTS.get(component.upper())
    return refused(name, f"{found}, not an image of the anatomy", "map", "Leave it out") if found else None


def _layout(opened: Opened, name: str, photometric: str) -> Layout:
    header = opened.header
    if opened.kind != dicom.PIXELS:
        raise refused(name, "pixels of floating-point numbers are not supported", "unsupported")
    rows, columns = dicom.whole(header, dicom.ROWS), dicom.whole(header, dicom.COLUMNS)
    allocated = dicom.whole(header, dicom.BITS_ALLOCATED)
    frames = dicom.whole(header, dicom.FRAMES)
    if not rows or not columns or rows < 0 or columns < 0 or allocated is None:
        raise damaged(name, "it does not say how large the picture is")
    if dicom.texts(header, dicom.FRAMES) and (frames is None or frames < 1):
        raise damaged(name, "its number of frames is not valid")
    if allocated not in (8, 16, 32):
        raise refused(name, f"pixels of {allocated} bits are not supported", "unsupported")
    stored = dicom.whole(header, dicom.BITS_STORED) or allocated
    high_bit = dicom.whole(header, dicom.HIGH_BIT)
    high_bit = stored - 1 if high_bit is None else high_bit
    if not 1 <= stored <= allocated or not stored - 1 <= high_bit < allocated:
        raise damaged(name, f"{stored} bits up to bit {high_bit} of {allocated} are not possible")
    signed = dicom.whole(header, dicom.SIGNED) == 1
    shape = dicom.text(header, dicom.PRESENTATION_SHAPE).upper()
    # A file with both says the same twice (C.7.6.3.1.2, C.11.6.1.2).
    invert = photometric == "MONOCHROME1" if shape not in ("IDENTITY", "INVERSE") else shape == "INVERSE"
    return Layout(rows, columns, frames or 1, allocated, stored, high_bit, signed, invert, _padding(header, signed))


def _padding(header: dicom.Header, signed: bool) -> Padding | None:
    value = dicom.whole(header, dicom.PADDING, signed=signed)
    if value is None:
        return None
    limit = dicom.whole(header, dicom.PADDING_LIMIT, signed=signed)
    limit = value if limit is None else limit
    return Padding(min(value, limit), max(value, limit))


def _check_limits(layout: Layout, opened: Opened, name: str) -> None:
    check_size(name, layout.columns, layout.rows)
    if layout.frames > MAX_FRAMES:
        raise too_large(name, f"{layout.frames} frames", layout.frames, MAX_FRAMES, "Split it")
    total = layout.frames * layout.frame_bytes
    if total > _MAX_PIXEL_BYTES:
        what = f"{layout.frames} frames of {layout.columns} x {layout.rows} pixels"
        raise too_large(name, what, total, _MAX_PIXEL_BYTES, "Split it")
    if opened.declared is not None and opened.length is not None and opened.length < min(total, opened.declared):
        reason = f"it ends after {opened.length} of {total} bytes of pixels"
        raise damaged(name, reason)


def _check_syntax(opened: Opened, name: str) -> None:
    syntax, native = opened.syntax, opened.length is not None
    if syntax in GDCM or syntax == RLE:
        if native:
            raise damaged(name, "its pixels are not in frames, as its transfer syntax demands")
        if syntax in GDCM:
            _check_gdcm(syntax, name)
        return
    if syntax is not None and syntax not in NATIVE:
        named = _NAMES.get(syntax)
        reason = f"{named} is not supported" if named else "its transfer syntax is not known"
        raise refused(name, reason, "unsupported", _CONVERT)
    if not native:
        raise damaged(name, "its pixels are compressed, but it does not say how")


def _check_gdcm(syntax: str, name: str) -> None:
    try:
        import gdcm
    except ImportError as error:
        reason = f"{GDCM[syntax]} needs python-gdcm, which is not installed"
        hint = "Install it: pip install 'mri-edge[dicom]'"
        raise InputError(f"{name}: {reason}", hint, code="unsupported") from error
    gdcm.Trace.WarningOff()  # its messages would reach stderr
    gdcm.Trace.ErrorOff()


def header_warnings(opened: Opened) -> Iterator[ResultWarning]:
    """Yield the warnings that concern every frame."""
    header, values = opened.header, image_type(opened.header)
    if dicom.text(header, dicom.BURNED_IN).upper() == "YES":
        yield ResultWarning("burned_in", "has text burned into the picture, which may identify the patient")
    if values[:1] == ("DERIVED",):
        yield ResultWarning("derived", "computed from other images (derived), not as the scanner measured it")
    lossy = dicom.text(header, dicom.LOSSY) == "01" or opened.syntax in (JPEG_BASELINE, JPEG_LS_NEAR_LOSSLESS)
    if lossy:
        yield ResultWarning("lossy", "was compressed with loss")
