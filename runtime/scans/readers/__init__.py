"""Find the reader of a scan file. This folder holds one file for each format.

A reader file defines its ``NAME`` (for messages), the ``SUFFIXES`` that files of the format usually have,
``recognizes(head, path)``, which decides by the first bytes of a file, and ``read(source, options)``, which returns the
frames. It imports the library of the format inside ``read``, because another reader may handle the file. A reader of a
format with geometry also defines ``slice_facts(path, options)``, which reads the header of a file only; see
``scans.headers``. A reader that can go on after a damaged frame defines ``read_each(source, options)``.

Two rules decide which reader takes a file. A known suffix is enough, so that no file is opened to list a folder of
10,000 pictures. Otherwise the first ``HEAD_BYTES`` bytes of the file decide, because scanners write names without a
suffix.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Protocol, cast

from mri_edge.scans.frame import Frame, Pixels, Source, Unread, not_one_frame, source_name
from mri_edge.scans.options import DEFAULT, ReadOptions

HEAD_BYTES = 512  # enough for the preamble of DICOM (132 bytes) and the header of NIfTI-1 (348 bytes)
TEMPORARY = (".part", ".partial", ".tmp", ".temp", ".crdownload", ".filepart", ".swp", "~")
"""Endings of the names that programs (rsync, browsers, Windows, editors) give to a file while they write it."""

_DEFAULT = "picture"  # tried first; it also reads unrecognized files, in order to explain what is wrong with them


class Reader(Protocol):
    """What a file in this folder defines."""

    NAME: str
    SUFFIXES: tuple[str, ...]
    recognizes: Callable[[bytes, str], bool]
    read: Callable[[Source, ReadOptions], Iterable[Frame]]


@lru_cache(maxsize=1)
def _names() -> list[str]:
    found = {module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")}
    return [_DEFAULT, *sorted(found - {_DEFAULT})]


@cache
def _reader(name: str) -> Reader:
    return cast(Reader, importlib.import_module(f"{__name__}.{name}"))


def readers() -> Iterator[Reader]:
    """Yield every reader, the one for pictures first. Each is imported when it is reached."""
    return map(_reader, _names())


def suffixes() -> tuple[str, ...]:
    """Return the suffixes of all formats, in lower case with the dot."""
    return tuple(suffix for reader in readers() for suffix in reader.SUFFIXES)


def has_known_suffix(path: str | os.PathLike[str]) -> bool:
    """Whether a file name ends in the suffix of some format. The file is not opened."""
    return reader_by_suffix(path) is not None


def recognizes(path: str | os.PathLike[str]) -> bool:
    """Whether a file in a folder is a scan that some reader takes. A hidden file is none.

    A file with a known suffix is not opened. For other files ``first_bytes`` are read.
    """
    path = os.fspath(path)
    return not _is_hidden(path) and (has_known_suffix(path) or recognizes_content(first_bytes(path), path))


def _is_hidden(path: str) -> bool:
    """Whether a file is hidden, such as the ``._scan.dcm`` that macOS writes beside ``scan.dcm`` on other disks."""
    return Path(path).name.startswith(".")


def recognizes_content(head: bytes, path: str) -> bool:
    """Whether some reader takes the file at ``path``, which begins with ``head``."""
    return _by_content(head, path) is not None


def read(source: Source, options: ReadOptions = DEFAULT) -> Iterable[Frame]:
    """Read the frames of a scan: a path, the bytes of a file, a Pillow image, an array or a ``pydicom.Dataset``.

    ``options`` says how values become a picture, for formats that hold values.

    Raises
    ------
    InputError
        The scan cannot be read. A reader that yields frames one by one may raise this between two frames.
    """
    return _reader_for(source).read(source, options)


def read_each(source: Source, options: ReadOptions = DEFAULT) -> Iterable[Frame | Unread]:
    """Read the frames of a scan as ``read`` does, and go on after a frame that cannot be read where the format allows.

    Raises
    ------
    InputError
        The scan, or what is left of it, cannot be read.
    """
    reader = _reader_for(source)
    read_frames: Callable[[Source, ReadOptions], Iterable[Frame | Unread]]
    read_frames = getattr(reader, "read_each", reader.read)
    return read_frames(source, options)


def _reader_for(source: Source) -> Reader:
    path = source_name(source)
    if path is not None:
        reader = reader_of(path)
    elif isinstance(source, bytes | bytearray | memoryview):
        reader = _by_content(bytes(source[:HEAD_BYTES]), "")
    else:
        reader = _reader("dicom") if _is_dataset(source) else None
    return reader or _reader(_DEFAULT)


def _is_dataset(source: object) -> bool:
    pydicom = sys.modules.get("pydicom")  # whoever has a Dataset has imported it
    return pydicom is not None and isinstance(source, pydicom.Dataset)


def load(source: Source, options: ReadOptions = DEFAULT) -> Pixels:
    """Read a scan that holds one frame: uint8 (H, W, 3) RGB. Parameters as for ``read``.

    Raises
    ------
    InputError
        The scan cannot be read, or holds several frames.
    """
    frames = list(read(source, options))
    if len(frames) != 1:
        raise not_one_frame(source, len(frames))
    return frames[0].pixels


def reader_of(path: str | os.PathLike[str]) -> Reader | None:
    """Return the reader that takes a file, or None for a file that no reader recognizes."""
    path = os.fspath(path)
    return reader_by_suffix(path) or _by_content(first_bytes(path), path)


def reader_by_suffix(path: str | os.PathLike[str]) -> Reader | None:
    """Return the reader that takes a file by the suffix of its name. The file is not opened."""
    lowered = os.fspath(path).lower()
    for name in _names():  # a plain loop: this is called for every file of a folder
        reader = _reader(name)
        if lowered.endswith(reader.SUFFIXES):
            return reader
    return None


def _by_content(head: bytes, path: str) -> Reader | None:
    return next((reader for reader in readers() if reader.recognizes(head, path)), None) if head else None


def first_bytes(path: str) -> bytes:
    """Return the first ``HEAD_BYTES`` bytes of a file; none of a hidden or temporary file, a pipe or a device."""
    file = Path(path)
    if _is_hidden(path) or file.name.lower().endswith(TEMPORARY):
        return b""
    try:
        if not file.is_file():  # opening a pipe or a device could block forever
            return b""
        with file.open("rb", buffering=0) as stream:
            return stream.read(HEAD_BYTES)
    except (OSError, ValueError):  # ValueError: a null character in the path
        return b""
