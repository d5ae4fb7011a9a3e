"""A bundle as one file, ``NAME.mribundle``: the same bytes whenever and wherever it is packed.

The format: a POSIX tar (ustar) without compression, so that no version of a compressor changes its bytes, no
small file grows large, and ``tar -tf`` lists it. ``manifest.json`` comes first, then ``manifest.json.sig`` if the
bundle is signed, then what the manifest lists, by name, and two blocks of zeros. Each header is the one that
``_header`` makes of name and size: plain files of mode 644, owner 0, time 0. A reader needs no tar library: what
differs from the one right header by a byte is refused, links, devices and odd paths with it, and every size is known
from the manifest before a file is read.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from ..bundle import MANIFEST_LIMIT, Bundle
from ..errors import BundleError, IntegrityError, OutputError
from ..files import whole_file, whole_folder
from ..manifest import MANIFEST, SIGNATURE, Artefact, Document, Manifest
from ..writing import check_free
from .signature import SIGNATURE_BYTES, check

SUFFIX = ".mribundle"
LARGEST = 4 << 30  # bytes, of a whole packed bundle
_BLOCK = 512
_PIECE = 1 << 20
_LONGEST_NAME = 100  # bytes; what a ustar header holds
_AGAIN = "Copy it again, or ask who made it"
# Names that Windows keeps for devices, whatever their suffix.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{one}{number}" for one in ("com", "lpt") for number in range(1, 10))}


def pack(bundle: Bundle, out: Path) -> None:
    """Write a bundle as one file, whole or not at all. Each file is hashed as it is read.

    Raises
    ------
    BundleError
        A name that not every system can unpack, or more than ``LARGEST`` bytes.
    IntegrityError
        A file differs from the manifest.
    OutputError
        ``out`` cannot be written.
    """
    manifest = bundle.manifest_bytes()
    bundle = Bundle.from_manifest(bundle.folder, manifest)
    entries = _in_order(bundle.manifest, str(bundle.folder))
    signature = bundle.signature_bytes()
    if signature is not None and len(signature) != SIGNATURE_BYTES:
        raise BundleError(f"{bundle.folder / SIGNATURE}: no signature, it has {len(signature)} bytes", "Sign it again")
    sizes = [len(manifest), *([SIGNATURE_BYTES] if signature else []), *(one.size_bytes for one in entries)]
    if _packed_size(sizes) > LARGEST:
        raise BundleError(
            f"{bundle.folder}: packed it would have more than {LARGEST} bytes", "Leave artefacts out: bundle slim"
        )
    with whole_file(out) as file:
        _write(file, MANIFEST, manifest)
        if signature is not None:
            _write(file, SIGNATURE, signature)
        for entry in entries:
            file.write(_header(entry.file, entry.size_bytes))
            with bundle.path_of(entry).open("rb") as source:  # a missing file is told from a full disk here
                _copy(source, entry, str(source.name), file)
        file.write(bytes(2 * _BLOCK))


def unpack(packed: Path, out: Path, *, signed_by: Path | None = None, overwrite: bool = False) -> Manifest:
    """Make a bundle folder of a packed bundle, after all of it was checked: whole or not at all.

    Parameters
    ----------
    signed_by
        File of the public key whose signature is required; checked before anything is written.

    Raises
    ------
    BundleError, ManifestError, IntegrityError, SignatureError
        The file is not a packed bundle, byte for byte as ``pack`` makes it, or not by that key.
    OutputError
        ``out`` is something else, or the disk has too little room.
    """
    check_free(out, overwrite=overwrite)
    with _Reader(packed, signed_by) as reader:
        room = shutil.disk_usage(next(one for one in out.absolute().parents if os.path.isdir(one))).free
        if reader.size > room:
            raise OutputError(f"{out}: unpacked it takes {reader.size} bytes, the disk has {room} free", "Make room")
        with whole_folder(out) as staging:
            for name, content in reader.head:
                (staging / name).write_bytes(content)
            for entry in reader.entries:
                target = staging / entry.file
                target.parent.mkdir(parents=True, exist_ok=True)
                with open(target, "xb") as file:
                    reader.copy(entry, file)
            reader.finish()
        return reader.manifest


def check_packed(packed: Path, signed_by: Path | None) -> Manifest:
    """Check all of a packed bundle without writing anything. Raises what ``unpack`` does."""
    with _Reader(packed, signed_by) as reader:
        for entry in reader.entries:
            reader.copy(entry, None)
        reader.finish()
        return reader.manifest


class _Reader:
    """Reads a packed bundle from front to back, refusing the first byte that is not as it must be."""

    def __init__(self, path: Path, signed_by: Path | None) -> None:
        self._path = path
        if not os.path.isfile(path):
            raise BundleError(f"{path}: no such file", "Name a file made by 'mri-edge bundle pack'")
        try:
            self._file = open(path, "rb")  # noqa: SIM115 (closed by __exit__)
        except OSError as error:
            raise BundleError(f"{path}: cannot read ({error.strerror})") from error
        try:
            self._open(signed_by)
        except BaseException:
            self._file.close()
            raise

    def _open(self, signed_by: Path | None) -> None:
        self.size = os.fstat(self._file.fileno()).st_size
        if self.size > LARGEST:
            raise BundleError(f"{self._path}: {self.size} bytes, a packed bundle has at most {LARGEST}", _AGAIN)
        header = self._file.read(_BLOCK)
        try:
            size = int(header[124:135], 8)
        except ValueError:
            size = -1
        if not 0 <= size <= MANIFEST_LIMIT or header != _header(MANIFEST, size):
            raise BundleError(f"{self._path}: is no packed bundle", "One is made by 'mri-edge bundle pack'")
        manifest = self._content(MANIFEST, size)
        self.head = [(MANIFEST, manifest)]
        signature = None
        after = self._file.tell()
        if self._file.read(_BLOCK) != _header(SIGNATURE, SIGNATURE_BYTES):
            self._file.seek(after)
        else:
            signature = self._content(SIGNATURE, SIGNATURE_BYTES)
            self.head.append((SIGNATURE, signature))
        if signed_by is not None:
            check(manifest, signature, signed_by, str(self._path))
        self.manifest = Manifest.from_json(manifest, origin=f"{self._path}: {MANIFEST}")
        self.entries = _in_order(self.manifest, str(self._path))
        wanted = _packed_size([len(content) for _, content in self.head] + [one.size_bytes for one in self.entries])
        if self.size != wanted:
            raise IntegrityError(f"{self._path}: {self.size} bytes, by its manifest it has {wanted}", _AGAIN)

    def copy(self, entry: Artefact | Document, to: BinaryIO | None) -> None:
        """Read one listed file and compare its hash; the entries must come in their order."""
        if self._file.read(_BLOCK) != _header(entry.file, entry.size_bytes):
            raise IntegrityError(f"{self._path}: {entry.file} should come next, as a plain file of its size", _AGAIN)
        _copy(self._file, entry, f"{self._path}: {entry.file}", to, padded=True)

    def finish(self) -> None:
        """See that nothing follows."""
        if self._file.read() != bytes(2 * _BLOCK):
            raise IntegrityError(f"{self._path}: does not end as a packed bundle does", _AGAIN)

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _content(self, name: str, size: int) -> bytes:
        content = self._file.read(size)
        if len(content) < size or self._file.read(_padding(size)) != bytes(_padding(size)):
            raise IntegrityError(f"{self._path}: ends or differs within {name}", _AGAIN)
        return content


def _header(name: str, size: int) -> bytes:
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


def _packed_size(parts: Sequence[int]) -> int:
    """Bytes of a packed bundle of files with these sizes: headers, contents, the two blocks at its end."""
    return sum(_BLOCK + size + _padding(size) for size in parts) + 2 * _BLOCK


def _padding(size: int) -> int:
    return -size % _BLOCK


def _write(file: BinaryIO, name: str, content: bytes) -> None:
    file.write(_header(name, len(content)) + content + bytes(_padding(len(content))))


def _copy(
    source: BinaryIO, entry: Artefact | Document, name: str, to: BinaryIO | None, *, padded: bool = False
) -> None:
    """Copy a listed file in pieces, with padding in ``to`` if the source has none, and compare size and hash."""
    digest = hashlib.sha256()
    left = entry.size_bytes
    while left and (piece := source.read(min(left, _PIECE))):
        digest.update(piece)
        left -= len(piece)
        if to is not None:
            to.write(piece)
    padding = bytes(_padding(entry.size_bytes))
    rest = source.read(len(padding)) if padded else b""
    if left or digest.hexdigest() != entry.sha256 or (padded and rest != padding):
        raise IntegrityError(f"{name}: differs from size or SHA-256 in the manifest", _AGAIN)
    if to is not None and not padded:
        to.write(padding)


def _in_order(manifest: Manifest, origin: str) -> Sequence[Artefact | Document]:
    """The listed files by name, after it was seen that every system can hold them beside one another."""
    listed: list[Artefact | Document] = [*manifest.artefacts, *manifest.documents]
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
