"""The format of a packed bundle, ``NAME.mribundle``, and how one is read.

The format: a POSIX tar (ustar) without compression, so that no version of a compressor changes its bytes, no
small file grows large, and ``tar -tf`` lists it. ``manifest.json`` comes first, then ``manifest.json.sig`` if the
bundle is signed, then what the manifest lists, by name, and two blocks of zeros. Each header is the one that
``header`` makes of name and size: plain files of mode 644, owner 0, time 0. A reader needs no tar library: what
differs from the one right header by a byte is refused, links, devices and odd paths with it. Size and place of every
file follow from the manifest, so any one of them can be read alone.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from mri_edge.errors import BundleError, IntegrityError

from .manifest import MANIFEST, MANIFEST_LIMIT, SIGNATURE, Artifact, Document, Manifest

LARGEST = 4 << 30  # bytes, of a whole packed bundle
SIGNATURE_BYTES = 64
END = bytes(1024)
_BLOCK = 512
_LONGEST_NAME = 100  # bytes; what a ustar header holds
AGAIN = "Copy it again, or ask who made it"
# Names that Windows keeps for devices, whatever their suffix.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{device}{number}" for device in ("com", "lpt") for number in range(1, 10))}


class Archive:
    """A packed bundle. Opening it reads manifest and signature; each listed file is read when it is asked for."""

    def __init__(self, path: Path) -> None:
        """Raises BundleError or IntegrityError for a file that is no packed bundle."""
        self.path = path
        with self._open() as file:
            self.size = os.fstat(file.fileno()).st_size
            if self.size > LARGEST:
                raise BundleError(f"{path}: {self.size} bytes, a packed bundle has at most {LARGEST}", AGAIN)
            self.manifest, self.signature = self._read_head(file)
            self._start = file.tell()
        self._places: dict[str, int] = {}

    @property
    def head(self) -> list[tuple[str, bytes]]:
        """The files that no manifest lists: the manifest itself, and the signature if there is one."""
        signature = [(SIGNATURE, self.signature)] if self.signature is not None else []
        return [(MANIFEST, self.manifest), *signature]

    def place(self, manifest: Manifest) -> Sequence[Artifact | Document]:
        """Find where each listed file lies; returns them in their order.

        Raises
        ------
        BundleError
            A name that not every system can hold.
        IntegrityError
            The packed bundle is shorter or longer than the manifest says.
        """
        entries = in_order(manifest, str(self.path))
        place = self._start
        for entry in entries:
            self._places[entry.file] = place
            place += _BLOCK + padded(entry.size_bytes)
        if self.size != place + len(END):
            raise IntegrityError(f"{self.path}: {self.size} bytes, by its manifest it has {place + len(END)}", AGAIN)
        return entries

    def read(self, entry: Artifact | Document) -> bytes:
        """Content of a listed file as it stands there; its hash is for the caller to compare. Raises IntegrityError."""
        with self._open() as file:
            file.seek(self._places[entry.file])
            if file.read(_BLOCK) != header(entry.file, entry.size_bytes):
                raise IntegrityError(f"{self.path}: {entry.file} should stand here, as a plain file of its size", AGAIN)
            return self._content(file, entry.file, entry.size_bytes)

    def check_end(self) -> None:
        """Raise IntegrityError unless the file ends as a packed bundle does."""
        with self._open() as file:
            file.seek(self.size - len(END))
            if file.read() != END:
                raise IntegrityError(f"{self.path}: does not end as a packed bundle does", AGAIN)

    def _open(self) -> BinaryIO:
        if not os.path.isfile(self.path):
            raise BundleError(f"{self.path}: no such file", "Name a file made by 'mri-edge bundle pack'")
        try:
            return open(self.path, "rb")
        except OSError as error:
            raise BundleError(f"{self.path}: cannot read ({error.strerror})") from error

    def _read_head(self, file: BinaryIO) -> tuple[bytes, bytes | None]:
        first = file.read(_BLOCK)
        try:
            size = int(first[124:135], 8)
        except ValueError:
            size = -1
        if not 0 <= size <= MANIFEST_LIMIT or first != header(MANIFEST, size):
            raise BundleError(
                f"{self.path}: is no packed bundle", "A bundle is a folder, or a file made by 'mri-edge bundle pack'"
            )
        manifest = self._content(file, MANIFEST, size)
        after = file.tell()
        if file.read(_BLOCK) != header(SIGNATURE, SIGNATURE_BYTES):
            file.seek(after)
            return manifest, None
        return manifest, self._content(file, SIGNATURE, SIGNATURE_BYTES)

    def _content(self, file: BinaryIO, name: str, size: int) -> bytes:
        content = file.read(size)
        padding = bytes(padded(size) - size)
        if len(content) < size or file.read(len(padding)) != padding:
            raise IntegrityError(f"{self.path}: ends or differs within {name}", AGAIN)
        return content


def header(name: str, size: int) -> bytes:
    """The one right ustar header of a plain file (POSIX.1-2017, pax, "ustar Interchange Format")."""
    fields = (
        name.encode().ljust(100, b"\0"),
        b"0000644\0" + b"0000000\0" * 2,  # mode, owner, group
        b"%011o\0" % size,
        b"00000000000\0",  # time
        b" " * 8,  # the checksum, as it counts in itself
        b"0" + bytes(100),  # a plain file, no link
        b"ustar\00000",
        bytes(64),  # names of owner and group
        b"0000000\0" * 2,  # device numbers
        bytes(155 + 12),
    )
    header = b"".join(fields)
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


def packed_size(parts: Sequence[int]) -> int:
    """Bytes of a packed bundle of files with these sizes: headers, contents, the two blocks at its end."""
    return sum(_BLOCK + padded(size) for size in parts) + len(END)


def padded(size: int) -> int:
    """Bytes that a file of this size takes, filled up to whole blocks."""
    return size + -size % _BLOCK


def in_order(manifest: Manifest, origin: str) -> Sequence[Artifact | Document]:
    """The listed files by name, after it was seen that every system can hold them beside one another."""
    listed: list[Artifact | Document] = [*manifest.artefacts, *manifest.documents]
    entries = sorted(listed, key=lambda one: one.file.encode())
    taken = {_folded(MANIFEST), _folded(SIGNATURE)}
    folders: set[str] = set()
    for entry in entries:
        reason = _unportable(entry.file)
        name = _folded(entry.file)
        if name in taken:
            reason = "is there twice, or would be on systems that tell no capitals"
        above = {"/".join(name.split("/")[:depth]) for depth in range(1, name.count("/") + 1)}
        folders |= above
        taken.add(name)
        if folders & taken:
            reason = "is a file and a folder"
        if entry.size_bytes < 0:
            reason = "has a negative size"
        if reason:
            raise BundleError(f"{origin}: {entry.file!r} {reason}", "Name it otherwise, and make the bundle again")
    return entries


def _unportable(file: str) -> str:
    """Why not every system can hold a file of that name; empty if all can."""
    if len(file.encode()) > _LONGEST_NAME:
        return f"is longer than {_LONGEST_NAME} bytes"
    for part in file.split("/"):
        if part.endswith((" ", ".")) or set(part) & set('<>"|?*') or part.split(".")[0].rstrip().lower() in _DEVICES:
            return "is no name on Windows"
    return ""


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
