"""Stream the voxels of a NIfTI file, plain or gzip-compressed, plane by plane and within bounds."""

from __future__ import annotations

import io
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mri_edge.errors import InputError
from mri_edge.scans.files import open_scan, out_of_memory
from mri_edge.scans.frame import Source
from mri_edge.storage.lfs import HINT, is_lfs_pointer

from ._nifti_header import HEADER_BYTES, parse, version_of
from ._picture_limits import damaged, too_large

GZIP = b"\x1f\x8b"
_PIECE = 1 << 16  # compressed bytes that are read at a time
_MAX_MEMBERS = 100_000  # gzip streams in a file; a block-compressed volume of 1 GiB has 16,384
_MAX_PADDING = 1 << 20  # decompressed bytes after the voxels
_MAX_STREAM = 256 << 20  # bytes from a pipe, which must fit in memory because they are read twice
# The voxels of a compressed volume up to this size are kept, because decompressing them twice takes longer.
_MAX_KEPT = 64 << 20


def first_block(head: bytes) -> bytes:
    """Return the first bytes of a file that begins with ``head``, decompressed; nothing if they cannot be."""
    if head[:2] != GZIP:
        return head
    try:
        return zlib.decompressobj(31).decompress(head, 1024)
    except zlib.error:
        return b""


class VoxelFile:
    """An open NIfTI file. Its planes can be read several times.

    Attributes
    ----------
    volume
        The parsed header.
    compressed
        Whether the file is compressed with gzip.
    """

    def __init__(self, file: BinaryIO, size: int, name: str) -> None:
        """Read the header. Raises InputError."""
        self._file, self._name = file, name
        if size == 0:
            raise InputError(f"{name}: the file is empty (0 bytes)", "Copy it again", code="damaged")
        self.compressed = file.read(2) == GZIP
        self._kept: bytes | None = None
        self._rewind()
        block = self._read(HEADER_BYTES[1])
        if version_of(block) == 2:
            block += self._read(HEADER_BYTES[2] - HEADER_BYTES[1])
        if is_lfs_pointer(block[:64]):
            raise InputError(f"{name}: this is a Git LFS pointer, not the scan", HINT, code="unsupported")
        if version_of(block) is None:
            raise _no_header(block, name)
        self.volume = parse(block, name)
        if not self.compressed and size < self.volume.offset + self._stored_bytes:
            self._raise_truncated(max(0, size - self.volume.offset))

    @property
    def _stored_bytes(self) -> int:
        return self.volume.bytes_per_plane * self.volume.shape[2]

    def planes(self) -> Iterator[NDArray[Any]]:
        """Yield the stored values in the file's order, (Y, X) in the machine's byte order. Raises InputError."""
        volume = self.volume
        keep = self.compressed and self._stored_bytes <= _MAX_KEPT
        if self._kept is None:
            self._rewind()
            self._read(volume.offset)
            if keep:
                self._kept = self._read(self._stored_bytes)
                if len(self._kept) < self._stored_bytes:
                    self._raise_truncated(len(self._kept))
                self._check_end()
        for index in range(volume.shape[2]):
            start = index * volume.bytes_per_plane
            if self._kept is not None:
                content = self._kept[start : start + volume.bytes_per_plane]
            else:
                content = self._read(volume.bytes_per_plane)
            if len(content) < volume.bytes_per_plane:
                self._raise_truncated(start + len(content))
            plane = np.frombuffer(content, volume.dtype).reshape(volume.shape[1], volume.shape[0])
            yield plane.astype(volume.dtype.newbyteorder("="), copy=False)
        if self._kept is None:
            self._check_end()

    def _check_end(self) -> None:
        if self._gunzip:
            self._gunzip.check_end()

    def _raise_truncated(self, received: int) -> None:
        reason = f"it ends after {received:,} of {self._stored_bytes:,} bytes of voxels"
        raise damaged(self._name, reason)

    def _rewind(self) -> None:
        self._file.seek(0)
        self._gunzip = _Gunzip(self._file, self._name) if self.compressed else None

    def _read(self, size: int) -> bytes:
        """Read ``size`` decompressed bytes, or fewer at the end."""
        return self._gunzip.read(size) if self._gunzip else self._file.read(size)


class _Gunzip:
    """Decompress gzip streams (RFC 1952) without more output than was asked for.

    The standard library's ``gzip`` reads names and comments in the header byte by byte, which takes minutes for a
    hostile file.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        self._decoder = zlib.decompressobj(31)
        self._rest, self._members, self._ended = b"", 1, False

    def read(self, size: int) -> bytes:
        """Return ``size`` bytes, or fewer at the end. Raises InputError if a stream is damaged."""
        pieces: list[bytes] = []
        while size > 0 and not self._ended:
            if not self._rest and not self._decoder.eof:
                self._rest = self._file.read(_PIECE)
                if not self._rest:
                    self._ended = True
                    break
            if self._decoder.eof and not self._next_member():
                break
            try:
                piece = self._decoder.decompress(self._rest, size)
            except zlib.error as error:
                raise damaged(self._name, f"its compression is broken: {error}") from error
            self._rest = self._decoder.unconsumed_tail
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def check_end(self) -> None:
        """Raise InputError unless the streams end here, or after some padding, with the right checksums."""
        padding = 0
        while not self._ended and padding <= _MAX_PADDING:
            padding += len(self.read(_PIECE))
        if padding > _MAX_PADDING:
            raise damaged(self._name, "it goes on after its voxels")
        if not self._decoder.eof:
            raise damaged(self._name, "its compression ends without a checksum")

    def _next_member(self) -> bool:
        """Continue with the stream that follows, if there is one; padding with zeros is allowed."""
        rest = (self._decoder.unused_data or self._file.read(_PIECE)).lstrip(b"\0")
        if rest[:1] != GZIP[:1]:
            self._ended = True
            return False
        self._members += 1
        if self._members > _MAX_MEMBERS:
            raise too_large(self._name, "it is made of too many gzip streams", self._members, _MAX_MEMBERS)
        self._decoder, self._rest = zlib.decompressobj(31), rest
        return True


def _no_header(block: bytes, name: str) -> InputError:
    """Return the error for a file that has the name of a NIfTI file, but not its header."""
    if block[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c"):
        if len(block) < HEADER_BYTES[1]:
            return damaged(name, "it ends inside its header")
        return InputError(
            f"{name}: Analyze 7.5 is not supported, because it does not say where left is",
            "Convert it to NIfTI with the program that wrote it",
            code="unsupported",
        )
    return InputError(f"{name}: not NIfTI, although its name says so", "Copy or export it again", code="unsupported")


@contextmanager
def open_voxels(source: Source, name: str) -> Iterator[VoxelFile]:
    """Open a path or the bytes of a file.

    Raises
    ------
    InputError
        As for ``nifti.read``.
    """
    if not isinstance(source, str | os.PathLike | bytes | bytearray | memoryview):
        raise InputError(f"a NIfTI scan must be a path or the bytes of a file. Received: {type(source).__name__}")
    try:
        if isinstance(source, bytes | bytearray | memoryview):
            yield VoxelFile(io.BytesIO(source), len(source), name)
            return
        with open_scan(os.fspath(source)) as raw, io.BufferedReader(raw) as file:
            status = os.fstat(raw.fileno())
            if stat.S_ISREG(status.st_mode):
                yield VoxelFile(file, status.st_size, name)
                return
            content = file.read(_MAX_STREAM + 1)  # a pipe, which cannot be read twice
            if len(content) > _MAX_STREAM:
                hint = "Save it as a file first"
                raise too_large(name, f"more than {_MAX_STREAM >> 20} MiB from a pipe", len(content), _MAX_STREAM, hint)
            yield VoxelFile(io.BytesIO(content), len(content), name)
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such file", code="missing") from error
    except IsADirectoryError as error:
        raise InputError(f"{name}: is a folder, not a scan", code="not_a_file") from error
    except MemoryError as error:
        raise out_of_memory(name) from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise InputError(f"{name}: cannot read ({getattr(error, 'strerror', None) or error})") from error
