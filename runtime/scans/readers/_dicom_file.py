"""Open a DICOM file, or take a pydicom Dataset: the header, the transfer syntax, and where the pixels begin.

Only the elements that ``_dicom_values.TAGS`` names are kept, so names and dates of patients never reach the memory of
the reader, let alone a message. ``dicom.texts`` alone asks for others.
"""

from __future__ import annotations

import io
import logging
import os
import stat
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from mri_edge.errors import InputError
from mri_edge.scans.files import is_transient, open_scan, out_of_memory
from mri_edge.scans.frame import Source

from . import _dicom_values as dicom
from ._dicom_signature import MAGIC_OFFSET, has_magic, is_directory, looks_like_dataset
from ._picture_limits import BoundedFile, too_large
from ._picture_pixels import decoding

if TYPE_CHECKING:
    from pydicom import Dataset

_MAX_STREAM = 1 << 28  # bytes of a pipe
_MAX_INFLATED = 1 << 28  # bytes that a deflated file may have unpacked
# A smaller file is held in memory, and the reads of its header are not counted: they take at most 2 s.
_SMALL_FILE = 1 << 20  # bytes
_MAX_HEADER_READS = 600_000  # an enhanced object makes some hundred for each frame, pydicom takes up to 10 us for each
_MAX_FILE_META = 1 << 16  # bytes

_DEFLATED = "1.2.840.10008.1.2.1.99"
NATIVE = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", _DEFLATED, "1.2.840.10008.1.2.2"}
_IMPLICIT, _BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
_TAGS: list[Any] = list(dicom.TAGS)
_PIXELS = frozenset((dicom.PIXELS, dicom.FLOAT_PIXELS, dicom.DOUBLE_PIXELS))

_INSTALL = "Install it: pip install 'mri-edge[dicom]'"
_COPY = "Copy or export it again"


@dataclass(frozen=True)
class Opened:
    """A DICOM object without its pixels.

    Attributes
    ----------
    header
        The elements that are read.
    syntax
        UID of the transfer syntax, or None if the file does not say.
    little
        Whether native pixels are little-endian.
    stream
        What holds the pixels, or None if there are none.
    offset
        Where the value of Pixel Data begins in ``stream``.
    length
        Bytes of native pixels that are there; None for encapsulated frames.
    declared
        Bytes of native pixels that the header declares; None for encapsulated frames.
    kind
        The tag of the element with the pixels.
    """

    header: dicom.Header
    syntax: str | None
    little: bool
    stream: BinaryIO | None
    offset: int = 0
    length: int | None = None
    declared: int | None = None
    kind: int = dicom.PIXELS


class _Quiet:
    """A context in which neither pydicom nor Python's warnings write anything. Any number of threads may be inside.

    Their messages quote values of the file.
    """

    def __init__(self) -> None:
        self._reset()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0

    def __enter__(self) -> None:
        decoding.__enter__()
        with self._lock:
            if not self._inside:
                logger = logging.getLogger("pydicom")
                self._saved = logger.disabled, logger.propagate
                # Its own records, and those of its children: a new level would clear the caches of all loggers.
                logger.disabled, logger.propagate = True, False
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                logger = logging.getLogger("pydicom")
                logger.disabled, logger.propagate = self._saved
        decoding.__exit__(*error)


quiet = _Quiet()


def damaged(name: str, reason: str) -> InputError:
    """Return the error for a DICOM file that violates its format."""
    return InputError(f"{name}: damaged DICOM file ({reason})", _COPY, code="damaged")


def refused(name: str, reason: str, code: str, hint: str = "") -> InputError:
    """Return the error for a DICOM file that is valid but nothing for the network."""
    return InputError(f"{name}: {reason}", hint, code=code)


@contextmanager
def opened(source: Source | Dataset, name: str, tags: Sequence[Any] = _TAGS) -> Iterator[Opened]:
    """Open a path, the bytes of a file, or a Dataset. Of a file, only the elements in ``tags`` are kept.

    Raises
    ------
    InputError
        ``code`` is "missing", "not_a_file", "damaged", "too_large", "out_of_memory" or "unsupported", the last also if
        pydicom is not installed.
    """
    try:
        import pydicom
    except ImportError as error:
        raise refused(name, "reading DICOM needs pydicom, which is not installed", "unsupported", _INSTALL) from error
    try:
        if isinstance(source, pydicom.Dataset):
            yield _of_dataset(source)
            return
        if isinstance(source, bytes | bytearray | memoryview):
            content = io.BytesIO(source)
            size = memoryview(source).nbytes
            yield _parse(content if size <= _SMALL_FILE else BoundedFile(content, name, size), size, name, tags)
            return
        assert isinstance(source, str | os.PathLike)  # noqa: S101 (the registry passes nothing else)
        with _file(os.fspath(source), name) as (stream, size):
            yield _parse(stream, size, name, tags)
    except MemoryError as error:  # also from the caller's block, which decodes the pixels
        raise out_of_memory(name) from error


@contextmanager
def _file(path: str, name: str) -> Iterator[tuple[BinaryIO, int]]:
    try:
        file = open_scan(path)
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such file", code="missing") from error
    except IsADirectoryError as error:
        raise InputError(f"{name}: is a folder, not a scan", code="not_a_file") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise InputError(f"{name}: cannot read ({getattr(error, 'strerror', None) or error})") from error
    with file:
        status = os.fstat(file.fileno())
        regular = stat.S_ISREG(status.st_mode)
        if regular and status.st_size > _SMALL_FILE:
            yield BoundedFile(file, name, status.st_size), status.st_size
            return
        try:
            content = file.read(status.st_size) if regular else io.BufferedReader(file).read(_MAX_STREAM + 1)
        except OSError as error:
            raise InputError(f"{name}: cannot read ({error.strerror})") from error
        if len(content) > _MAX_STREAM:
            raise too_large(name, f"more than {_MAX_STREAM >> 20} MiB", len(content), _MAX_STREAM)
        stream = io.BytesIO(content)
        yield stream if len(content) <= _SMALL_FILE else BoundedFile(stream, name, len(content)), len(content)


def _parse(stream: BinaryIO, size: int, name: str, tags: Sequence[Any]) -> Opened:
    head = stream.read(512)
    if not size:
        raise InputError(f"{name}: the file is empty (0 bytes)", "Copy it again", code="damaged")
    if not has_magic(head) and not looks_like_dataset(head):
        raise InputError(f"{name}: not DICOM, whatever its name says", code="unsupported")
    if is_directory(head):
        raise refused(name, "a DICOMDIR, which lists files and has no pixels", "no_pixels", "Name its folder")
    stream.seek(0)
    try:
        return _read_header(stream, size, name, tags)
    except (InputError, MemoryError):
        raise
    except Exception as error:
        if is_transient(error):
            raise InputError(f"{name}: cannot read ({error})", "Try again") from error
        # pydicom raises many kinds of errors, and its messages quote values.
        raise damaged(name, "its header cannot be read") from error


def _read_header(stream: BinaryIO, size: int, name: str, tags: Sequence[Any]) -> Opened:
    from pydicom.filereader import read_dataset

    syntax, start = _file_meta(stream)
    if syntax == _DEFLATED:
        (stream, size), start = _inflate(stream, start, name), 0
    stream.seek(start)
    implicit, little = _encoding(syntax, stream.read(6))
    stream.seek(start)
    if isinstance(stream, BoundedFile):
        stream.max_reads = _MAX_HEADER_READS
    with quiet:
        dataset = read_dataset(stream, implicit, little, stop_when=_at_pixels, specific_tags=list(tags))
        header = dicom.Header(dataset)
    if isinstance(stream, BoundedFile):
        stream.allow_whole_file()
    element = _pixel_element(stream, "<" if little else ">")
    if element is None:
        return Opened(header, syntax, little, None)
    tag, offset, length = element
    if length == 0xFFFFFFFF:
        return Opened(header, syntax, little, stream, offset, kind=tag)
    return Opened(header, syntax, little, stream, offset, min(length, size - offset), length, tag)


def _encoding(syntax: str | None, start: bytes) -> tuple[bool, bool]:
    """Return whether a dataset has implicit representations, and whether it is little-endian.

    ``start`` is how it begins, which decides if the file does not name its transfer syntax.
    """
    if syntax is not None:
        return syntax == _IMPLICIT, syntax != _BIG_ENDIAN
    explicit = len(start) == 6 and start[4:6].isalpha() and start[4:6].isupper()
    return not explicit, not (explicit and start[:1] == b"\0" and start[1:2] != b"\0")


def _at_pixels(tag: Any, representation: str | None, length: int) -> bool:
    return int(tag) in _PIXELS  # int: comparing pydicom's tags takes longer than reading the element


def _pixel_element(stream: BinaryIO, order: str) -> tuple[int, int, int] | None:
    """Return tag, offset and length of the element at which reading stopped, or None at the end of the file."""
    position = stream.tell()
    start = stream.read(12)
    if len(start) < 8:
        return None
    group, number = struct.unpack_from(f"{order}HH", start)
    tag = group << 16 | number
    if tag not in _PIXELS:
        return None
    # An implicit length is never taken for one of these representations: it is even, and they would be odd lengths.
    if start[4:6] in (b"OB", b"OW", b"UN", b"OF", b"OD"):
        return tag, position + 12, struct.unpack_from(f"{order}I", start.ljust(12, b"\0"), 8)[0]
    return tag, position + 8, struct.unpack_from(f"{order}I", start, 4)[0]


def _file_meta(stream: BinaryIO) -> tuple[str | None, int]:
    """Return the transfer syntax, or None if the file does not say, and where the dataset begins.

    pydicom would build an object for these elements, which takes as long as the dataset.

    The file meta information is explicit and little-endian in every file (PS3.10 7.1).
    """
    stream.seek(0)
    content = stream.read(_MAX_FILE_META)
    position = MAGIC_OFFSET + 4 if has_magic(content) else 0
    syntax = None
    while position + 8 <= len(content) and content[position : position + 2] == b"\x02\0":
        number = struct.unpack_from("<H", content, position + 2)[0]
        if content[position + 4 : position + 6] in (b"OB", b"UN"):
            length, size = struct.unpack_from("<I", content.ljust(position + 12, b"\0"), position + 8)[0], 12
        else:
            length, size = struct.unpack_from("<H", content, position + 6)[0], 8
        value = content[position + size : position + size + length]
        if number == 0x0010:
            syntax = value.decode("ascii", "replace").strip(" \0") or None
        position += size + length
    # Some programs leave the elements of a network message in the file; they are implicit (PS3.7 6.3.1).
    while position + 8 <= len(content) and content[position : position + 2] == b"\0\0":
        position += 8 + int(struct.unpack_from("<I", content, position + 4)[0])
    return syntax, position


def _inflate(stream: BinaryIO, start: int, name: str) -> tuple[BinaryIO, int]:
    """Unpack a deflated dataset (PS3.5 A.5): everything after the file meta information."""
    stream.seek(start)
    if isinstance(stream, BoundedFile):
        stream.allow_whole_file()
    try:
        content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(stream.read(), _MAX_INFLATED + 1)
    except zlib.error as error:
        raise damaged(name, "its deflated dataset cannot be unpacked") from error
    if len(content) > _MAX_INFLATED:
        limit = f"more than {_MAX_INFLATED >> 20} MiB when unpacked"
        raise too_large(name, limit, len(content), _MAX_INFLATED)
    unpacked = io.BytesIO(content)
    size = len(content)
    return unpacked if size <= _SMALL_FILE else BoundedFile(unpacked, name, size), size


def _of_dataset(dataset: Dataset) -> Opened:
    """Take a Dataset of the caller. It is not changed, but pydicom may convert elements that it has read lazily."""
    meta = getattr(dataset, "file_meta", None)
    syntax = getattr(meta, "TransferSyntaxUID", None)
    syntax = None if syntax is None else str(syntax)
    _, little = dataset.original_encoding
    little = syntax != _BIG_ENDIAN if syntax is not None else little is not False
    header = dicom.Header(dataset)
    for kind in (dicom.PIXELS, dicom.FLOAT_PIXELS, dicom.DOUBLE_PIXELS):
        if kind not in dataset:
            continue
        found = header.element(kind)
        value = None if found is None else found.value
        if not isinstance(value, bytes | bytearray):
            break
        stream = io.BytesIO(value)
        if syntax is None or syntax in NATIVE:
            return Opened(header, syntax, little, stream, 0, len(value), len(value), kind)
        return Opened(header, syntax, little, stream, 0, kind=kind)
    return Opened(header, syntax, little, None)
