"""Read the files in an uploaded zip file, with bounds on their number, their bytes and how densely they are packed."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import BinaryIO

from mri_edge.errors import DISK_ERRORS
from mri_edge.services.http.errors import RequestRefused
from mri_edge.services.http.limits import MAX_FILES, MAX_RATIO, Limits

SIGNATURE = b"PK\x03\x04"

# Structures of the zip format: APPNOTE 6.3.10, 4.3.15 and 4.3.16.
_END, _END_SIZE, _LOCATOR, _LOCATOR_SIZE = b"PK\x05\x06", 22, b"PK\x06\x07", 20
_MAX_COMMENT = 65_535
_MAX_DIRECTORY = 8 << 20  # bytes of the central directory; 800 for each of the most entries
_PIECE = 1 << 20
_SYMLINK = 0o120000
_ENCRYPTED = 1  # bit of the flags
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def _bad(reason: str, code: str = "bad_zip", status: int = 400) -> RequestRefused:
    return RequestRefused(status, code, f"the zip file is refused: {reason}")


def entries(file: BinaryIO, limits: Limits) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Yield the name and the content, in pieces, of each file in a zip file, sorted by name.

    Folders and what macOS adds (``__MACOSX``, hidden files) are left out.

    Raises
    ------
    RequestRefused
        400: it is damaged, encrypted, contains links, or names that lead out of the folder; 413: it has too many
        entries or too many bytes, or is packed so densely that it must be a bomb.
    """
    _check_directory(file)
    with _refused_if_damaged():
        archive = zipfile.ZipFile(file)
    with archive:
        members = [member for member in archive.infolist() if not member.filename.endswith("/")]
        packed = _check(members, limits)
        unpacked = 0
        for member in sorted(members, key=lambda member: member.filename):
            if _is_hidden(member.filename):
                continue
            unpacked += member.file_size
            if unpacked > max(MAX_RATIO * packed, _PIECE):
                raise _bad(f"it unpacks to more than {MAX_RATIO} times its size", "zip_bomb", 413)
            yield member.filename, _pieces(archive, member)


@contextmanager
def _refused_if_damaged() -> Iterator[None]:
    """Turn what zipfile raises about a damaged file into a refusal."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise _bad("it is damaged") from error
    except OSError as error:
        if error.errno in DISK_ERRORS:
            raise
        raise _bad("it is damaged") from error


def _check_directory(file: BinaryIO) -> None:
    """Refuse a huge central directory, which ``zipfile`` would read as a whole, and the 64-bit format."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _END_SIZE - _MAX_COMMENT - _LOCATOR_SIZE))
    tail = file.read()
    position = tail.rfind(_END)
    if position < 0 or len(tail) - position < _END_SIZE:
        raise _bad("it is cut off")
    count, length = struct.unpack_from("<HI", tail, position + 10)
    if _LOCATOR in tail[max(0, position - _LOCATOR_SIZE) : position]:
        raise _bad(f"it is of the 64-bit kind, for more than {MAX_FILES:,} files or 4 GiB", "too_many_files", 413)
    if count > MAX_FILES or length > _MAX_DIRECTORY:
        raise _bad(f"it has more than {MAX_FILES:,} files", "too_many_files", 413)
    file.seek(0)


def _check(members: list[zipfile.ZipInfo], limits: Limits) -> int:
    """Refuse what no upload of scans contains, and return the packed size of all members."""
    if len(members) > MAX_FILES:
        raise _bad(f"it has more than {MAX_FILES:,} files", "too_many_files", 413)
    for member in members:
        # zipfile replaces the separator of Windows where it is one, and cuts names at a null character.
        name = PurePosixPath(member.orig_filename.replace("\\", "/"))
        if not name.parts:
            raise _bad("it contains a file without a name", "zip_path")
        if name.is_absolute() or ".." in name.parts or "\0" in member.orig_filename or ":" in name.parts[0]:
            raise _bad("it contains a name that leads out of its folder", "zip_path")
        if member.external_attr >> 16 & 0o170000 == _SYMLINK:
            raise _bad("it contains a symbolic link", "zip_path")
        if member.flag_bits & _ENCRYPTED:
            raise _bad("it is encrypted")
        if member.compress_type not in _METHODS:
            raise _bad("it is packed with a method other than deflate")
    if sum(member.file_size for member in members) > limits.unpacked_bytes:
        raise _bad(f"it unpacks to more than {limits.unpacked_bytes:,} bytes", "zip_bomb", 413)
    return sum(member.compress_size for member in members)


def _is_hidden(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return parts[0] == "__MACOSX" or parts[-1].startswith(".")


def _pieces(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yield the content of a member. zipfile never reads more than its declared size, and checks its checksum."""
    with _refused_if_damaged():
        content = archive.open(member)
    with content:
        while True:
            with _refused_if_damaged():
                piece = content.read(_PIECE)
            if not piece:
                return
            yield piece
