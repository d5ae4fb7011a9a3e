"""Read DICOM images with pydicom. Compressed pixels need python-gdcm, except RLE. Both are in the extra ``dicom``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mri_edge.scans.frame import Frame, Source
from mri_edge.scans.options import DEFAULT, ReadOptions

from ._dicom_signature import has_magic, is_directory, looks_like_dataset

if TYPE_CHECKING:
    from mri_edge.scans.intensity import Window
    from mri_edge.scans.series import SliceFacts

NAME = "dicom"
SUFFIXES = (".dcm", ".dicom", ".ima")


def recognizes(head: bytes, path: str) -> bool:
    """Whether a file begins like DICOM, with or without the preamble. A DICOMDIR has no pixels and is none."""
    return not is_directory(head) if has_magic(head) else looks_like_dataset(head)


def read(source: Source, options: ReadOptions = DEFAULT) -> Iterator[Frame]:
    """Yield the frames of a file, its bytes or a ``pydicom.Dataset``, each decoded when it is asked for.

    ``Frame.metadata["dicom"]`` is the record of what was used; see ``docs/dicom.md``. Under ``"_facts"`` is the
    frame's ``SliceFacts``, and under ``"_layout"`` how its pixels are stored.

    Raises
    ------
    InputError
        ``code`` is one of ``_dicom_header.check``, or "missing", "not_a_file", "damaged", "too_large",
        "out_of_memory", "unsupported" or "unreadable". It may be raised between two frames.
    """
    from . import _dicom_reading

    yield from _dicom_reading.read(source, options)


def slice_facts(source: Source, options: ReadOptions = DEFAULT) -> Iterator[SliceFacts]:
    """Yield what the header says about each frame, without decoding. A file that ``read`` refuses yields its refusal.

    Raises
    ------
    InputError
        The header cannot be read at all.
    """
    from . import _dicom_reading

    yield from _dicom_reading.slice_facts(source, options)


def percentiles_over(paths: Sequence[str], options: ReadOptions = DEFAULT) -> Window | None:
    """Return the window by percentiles over the files of a series, of at most 64 of them, or None if none can be read.

    Each file holds one frame. Percentiles of each file alone would change the brightness from slice to slice, and show
    the noise of slices beside the head.
    """
    from . import _dicom_reading

    return _dicom_reading.percentiles_over(paths, options)
