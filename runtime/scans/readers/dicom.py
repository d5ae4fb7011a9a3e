"""Read DICOM images with pydicom. Compressed pixels need python-gdcm, except RLE. Both are in the extra ``dicom``."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from mri_edge.scans.frame import Frame, Source, Unread
from mri_edge.scans.options import DEFAULT, ReadOptions

from ._dicom_signature import has_magic, is_directory, looks_like_dataset

if TYPE_CHECKING:
    from mri_edge.scans.intensity import Window
    from mri_edge.scans.series import SliceFacts

NAME = "dicom"
SUFFIXES = (".dcm", ".dicom", ".ima")
_LIBRARIES = {"pydicom": "pydicom", "gdcm": "python-gdcm"}


def missing() -> str | None:
    """Return which library is not installed and how to install it, or None if files of every kind can be read."""
    names = [name for module, name in _LIBRARIES.items() if find_spec(module) is None]
    return f"{' and '.join(names)} not installed: pip install 'mri-edge[dicom]'" if names else None


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
    for frame in read_each(source, options):
        if isinstance(frame, Unread):
            raise frame.error
        yield frame


def read_each(source: Source, options: ReadOptions = DEFAULT) -> Iterator[Frame | Unread]:
    """Yield the frames as ``read`` does, and an ``Unread`` in place of each one that cannot be read.

    Raises
    ------
    InputError
        No frame can be read.
    """
    from . import _dicom_reading

    yield from _dicom_reading.read_each(source, options)


def slice_facts(source: Source, options: ReadOptions = DEFAULT) -> Iterator[SliceFacts]:
    """Yield what the header says about each frame, without decoding. A file that ``read`` refuses yields its refusal.

    Raises
    ------
    InputError
        The header cannot be read at all.
    """
    from . import _dicom_reading

    yield from _dicom_reading.slice_facts(source, options)


def transfer_syntaxes() -> tuple[str, ...]:
    """Return the identifiers of the transfer syntaxes that ``read`` knows, those without compression first."""
    from . import _dicom_file, _dicom_header

    return *sorted(_dicom_file.NATIVE), _dicom_header.RLE, *_dicom_header.GDCM


def percentiles_over(paths: Sequence[str], options: ReadOptions = DEFAULT) -> Window | None:
    """Return the window by percentiles over the files of a series, of at most 64 of them, or None if none can be read.

    Each file holds one frame. Percentiles of each file alone would change the brightness from slice to slice, and show
    the noise of slices beside the head.
    """
    from . import _dicom_reading

    return _dicom_reading.percentiles_over(paths, options)


def texts(source: Source, tags: Collection[int]) -> dict[int, str]:
    """Return the values of header elements as text, of those tags that have one. They may identify the patient.

    Text is decoded by the character set of the file. A value that breaks the standard is returned as far as pydicom
    can read it, otherwise left out. Several values are separated by a backslash.

    Raises
    ------
    InputError
        The header cannot be read at all.
    """
    from . import _dicom_reading

    return _dicom_reading.texts(source, tags)


def uid_of(text: str) -> str | None:
    """Return the first value of an element that ``texts`` returned, as ``slice_facts`` gives unique identifiers."""
    from ._dicom_values import as_uid

    return as_uid(text.partition("\\")[0].strip(" \0"))


def silenced() -> AbstractContextManager[None]:
    """Return a context in which pydicom and Python print no warnings, which would quote values of a file."""
    from ._dicom_file import quiet

    return quiet
