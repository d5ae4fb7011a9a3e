"""Read packed bundles, ``NAME.mribundle``, and define their format.

A packed bundle is a POSIX tar (ustar) without compression: its bytes do not depend on a compressor's version, a small
file cannot expand to a large one, and ``tar -tf`` lists it. It contains ``manifest.json``, then ``manifest.json.sig``
if the bundle is signed, then the files in the manifest sorted by name, and two blocks of zeros. ``header`` makes the
only valid header for a name and size: a regular file of mode 644, owner 0, time 0. The reader needs no tar library. It
refuses any other header, which excludes links, devices and unusual paths. The manifest determines the size and offset
of every file, so that each can be read alone.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from mri_edge.errors import BundleError, IntegrityError

from .manifest import MANIFEST, MANIFEST_LIMIT, SIGNATURE, Artifact, Document, Manifest

LARGEST = 4 << 30  # bytes of a packed bundle
SIGNATURE_BYTES = 64
END = bytes(1024)
_BLOCK = 512
_MAX_NAME_BYTES = 100  # the size of the field in a ustar header
_COPY_AGAIN = "Copy it again, or ask its author"
# Names that Windows reserves for devices, with any suffix.
_WINDOWS_DEVICES = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{device}{number}" for device in ("com", "lpt") for number in range(1, 10)),
}


class Archive:
    """An opened packed bundle. Opening it reads the manifest and the signature; ``read`` reads a listed file."""

    def __init__(self, path: Path) -> None:
        """Raises BundleError or IntegrityError if the file is not a packed bundle."""
        self.path = path
        with self._open() as file:
            self.size = os.fstat(file.fileno()).st_size
            if self.size > LARGEST:
                raise BundleError(f"{path}: {self.size} bytes, a packed bundle has at most {LARGEST}", _COPY_AGAIN)
            self.manifest, self.signature = self._read_head(file)
            self._start = file.tell()
        self._offsets: dict[str, int] = {}

    @property
    def head(self) -> list[tuple[str, bytes]]:
        """The files that the manifest does not list: the manifest itself, and the signature if there is one."""
        signature = [(SIGNATURE, self.signature)] if self.signature is not None else []
        return [(MANIFEST, self.manifest), *signature]

    def locate(self, manifest: Manifest) -> Sequence[Artifact | Document]:
        """Compute the offset of each listed file, and return the files in their order.

        Raises
        ------
        BundleError
            A file name that is not valid on every system.
        IntegrityError
            The size of the packed bundle does not match the manifest.
        """
        entries = sorted_entries(manifest, str(self.path))
        offset = self._start
        for entry in entries:
            self._offsets[entry.file] = offset
            offset += _BLOCK + padded(entry.size_bytes)
        if self.size != offset + len(END):
            raise IntegrityError(
                f"{self.path}: {self.size} bytes, the files in its manifest make {offset + len(END)}", _COPY_AGAIN
            )
        return entries

    def read(self, entry: Artifact | Document) -> bytes:
        """Read a listed file. The caller compares its hash. Raises IntegrityError."""
        with self._open() as file:
            file.seek(self._offsets[entry.file])
            if file.read(_BLOCK) != header(entry.file, entry.size_bytes):
                raise IntegrityError(f"{self.path}: does not hold {entry.file} where the manifest puts it", _COPY_AGAIN)
            return self._content(file, entry.file, entry.size_bytes)

    def check_end(self) -> None:
        """Raise IntegrityError unless the file ends with two blocks of zeros."""
        with self._open() as file:
            file.seek(self.size - len(END))
            if file.read() != END:
                raise IntegrityError(f"{self.path}: has no end marker", _COPY_AGAIN)

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
                f"{self.path}: is not a packed bundle", "A bundle is a folder, or a file made by 'mri-edge bundle pack'"
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
            raise IntegrityError(f"{self.path}: is cut off or damaged within {name}", _COPY_AGAIN)
        return content


def header(name: str, size: int) -> bytes:
    """Make the only valid ustar header of a regular file (POSIX.1-2017, pax, "ustar Interchange Format")."""
    fields = (
        name.encode().ljust(100, b"\0"),
        b"0000644\0" + b"0000000\0" * 2,  # mode, owner, group
        b"%011o\0" % size,
        b"00000000000\0",  # time
        b" " * 8,  # the checksum field counts as spaces in the checksum
        b"0" + bytes(100),  # a regular file, not a link
        b"ustar\00000",
        bytes(64),  # names of owner and group
        b"0000000\0" * 2,  # device numbers
        bytes(155 + 12),
    )
    header = b"".join(fields)
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


def packed_size(parts: Sequence[int]) -> int:
    """Return the size in bytes of a packed bundle with files of these sizes, including headers and end."""
    return sum(_BLOCK + padded(size) for size in parts) + len(END)


def padded(size: int) -> int:
    """Return the size of a file's content padded to whole blocks."""
    return size + -size % _BLOCK


def sorted_entries(manifest: Manifest, origin: str) -> Sequence[Artifact | Document]:
    """Sort the listed files by name. Raises BundleError for names that cannot exist together on every system."""
    listed: list[Artifact | Document] = [*manifest.artifacts, *manifest.documents]
    entries = sorted(listed, key=lambda entry: entry.file.encode())
    taken = {_fold(MANIFEST), _fold(SIGNATURE)}
    folders: set[str] = set()
    for entry in entries:
        # A name that is too long is refused first: its folders could take more memory than the machine has.
        reason = _why_not_portable(entry.file) or _why_not_together(_fold(entry.file), taken, folders)
        if entry.size_bytes < 0:
            reason = "has a negative size"
        if reason:
            shown = entry.file[:_MAX_NAME_BYTES]
            raise BundleError(f"{origin}: {shown!r} {reason}", "Rename it and make the bundle again")
    return entries


def _why_not_together(name: str, taken: set[str], folders: set[str]) -> str:
    """Add a name to those that are taken, and its folders. Returns why it cannot exist with them, or an empty text."""
    if name in taken:
        return "occurs twice, or would on systems that ignore case"
    parents = {"/".join(name.split("/")[:depth]) for depth in range(1, name.count("/") + 1)}
    taken.add(name)
    folders |= parents
    return "is a file and a folder" if name in folders or parents & taken else ""


def _why_not_portable(file: str) -> str:
    """Return why a file name is not valid on every system, or an empty text."""
    if len(file.encode()) > _MAX_NAME_BYTES:
        return f"is longer than {_MAX_NAME_BYTES} bytes"
    for part in file.split("/"):
        if (
            part.endswith((" ", "."))
            or set(part) & set('<>"|?*')
            or part.split(".")[0].rstrip().lower() in _WINDOWS_DEVICES
        ):
            return "is not a valid name on Windows"
    return ""


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
