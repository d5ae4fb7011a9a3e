"""Define an input of an archive run, name it for people, and bring its files to this machine."""

from __future__ import annotations

import json
import lzma
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from mri_edge.errors import InputError, OutputError, UsageError, first_line, printable
from mri_edge.inference.prediction import Failure

_MOST_BYTES = 2 << 30  # of a scan that is copied to this machine
_MOST_TOGETHER = 8 << 30  # of the scans of a folder, whose copies exist at the same time
_UNSAFE = re.compile(r"[^\w .+,=-]", re.ASCII)  # characters that some file system does not take
# A missing member, one with a password, an unknown compression, a wrong checksum, a file that ends early, damaged data
_DAMAGED = (
    *(KeyError, RuntimeError, NotImplementedError, zipfile.BadZipFile, ValueError, EOFError),
    *(zlib.error, lzma.LZMAError),
)
_SECRET = re.compile(r"key|secret|token|password|sig\b", re.IGNORECASE)  # "sig" signs an address of Azure
_NO_SECRET_USERS = ("abfs", "abfss", "hdfs", "viewfs")  # before "@": in Azure the container, in HDFS the user
_OF_ARROW = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")  # pyarrow opens these; fsspec opens others


@dataclass(frozen=True)
class Member:
    """A file: its path, and in a tar its first byte. ``size`` in bytes is known of members of zip and tar files."""

    path: str
    offset: int | None = None
    size: int | None = None


@dataclass(frozen=True)
class Unit:
    """What a worker classifies together: one scan or, with results by series, the scans of one folder.

    Attributes
    ----------
    root
        Address of the object store as the user gave it; None for files of this machine.
    archive
        Path of the zip or tar file that holds the members, or None.
    members
        The files. Empty if ``error`` is set.
    error
        JSON object of the failure in place of the scan: a folder that cannot be listed, a path that names nothing.
    """

    root: str | None
    archive: str | None
    members: tuple[Member, ...]
    error: dict[str, Any] | None = None

    @classmethod
    def failed(cls, error: InputError) -> Unit:
        """Return the place of a source that cannot be read."""
        return cls(None, None, (), Failure(error.source, error).to_dict())

    @property
    def is_local(self) -> bool:
        """Whether the members are files of this machine, which need no copy."""
        return self.root is None and self.archive is None

    @property
    def name(self) -> str:
        """The name of the first file for people and results."""
        return self.name_of(self.members[0])

    def name_of(self, member: Member) -> str:
        """Return the name of a file for people and results, without options of the address."""
        path = member.path if self.archive is None else f"{self.archive}/{member.path}"
        return path if self.root is None else f"{urlsplit(self.root).scheme}://{path.lstrip('/')}"

    def to_json(self) -> str:
        """Return one line of ASCII. File names that are no valid text survive it."""
        record = vars(self) | {"members": [vars(member) for member in self.members]}  # "asdict" takes ten times as long
        return json.dumps(record, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Unit:
        """Return what ``to_json`` wrote."""
        record = json.loads(text)
        return cls(**record | {"members": tuple(Member(**member) for member in record["members"])})


def is_remote(source: str) -> bool:
    """Whether a source is the address of an object store, such as ``s3://bucket/prefix``."""
    scheme, separator, _ = source.partition("://")
    return bool(separator) and scheme.isalnum()


@lru_cache(maxsize=16)
def remote_filesystem(address: str) -> tuple[Any, str]:
    """Return the ``pyarrow.fs.FileSystem`` of an address, and the path in it.

    Credentials are those of the environment, as the client of the object store looks for them.

    Raises
    ------
    UsageError
        The address holds credentials, or nothing here opens such addresses.
    """
    from pyarrow import fs

    try:
        parts = urlsplit(address)
    except ValueError as error:  # brackets without an IP address
        raise UsageError("the address of a source is not valid", "For example: s3://bucket/prefix") from error
    user_is_secret = parts.username not in (None, "anonymous") and parts.scheme not in _NO_SECRET_USERS
    if user_is_secret or parts.password is not None or _SECRET.search(parts.query):
        raise UsageError(
            f"{parts.scheme}://: an address must not hold credentials",
            "Set them in the environment, as for the AWS CLI",
        )
    try:
        if parts.scheme in _OF_ARROW:
            filesystem, path = fs.FileSystem.from_uri(address)
            return filesystem, path
        import fsspec

        other, path = fsspec.core.url_to_fs(address)
        return fs.PyFileSystem(fs.FSSpecHandler(other)), path
    except (ImportError, ValueError, OSError) as error:
        raise UsageError(
            f"{parts.scheme}://{parts.netloc}{parts.path}: cannot open ({printable(first_line(error))[:200]})",
            "pyarrow opens s3, gs, abfs and hdfs; others need a package of fsspec",
        ) from error


def open_file(root: str | None, path: str) -> Any:
    """Open a file of this machine or of an object store for reading at any position."""
    if root is None:
        return open(path, "rb")
    filesystem, _ = remote_filesystem(root)
    return filesystem.open_input_file(path)


@contextmanager
def local_files(unit: Unit, first: int | None = None) -> Iterator[dict[str, str | InputError]]:
    """Yield the files of a unit on this machine: their paths and, as values, their names or why there is no file.

    Files of object stores and members of zip and tar files are copied to a temporary folder for the time of the block:
    their ``first`` bytes, or the whole file. If all together are too large, they have one error.
    """
    if unit.is_local:
        yield {member.path: member.path for member in unit.members}
        return
    with tempfile.TemporaryDirectory(prefix="mri-edge-scans-") as folder:
        found: dict[str, str | InputError] = {}
        copied = 0
        for number, member in enumerate(unit.members):
            name = unit.name_of(member)
            target = Path(folder, str(number), _local_name(member.path))
            target.parent.mkdir()
            try:
                _copy(unit, member, name, target, first)
                found[str(target)] = name
                copied += target.stat().st_size
            except InputError as error:
                found[str(target)] = error
                target.unlink(missing_ok=True)
            if copied > _MOST_TOGETHER:
                found = {folder: _too_large_together(unit, copied)}
                break
        yield found


def _local_name(path: str) -> str:
    """Return the name of the copy, which captions of pictures contain: that of the file, safe for any file system."""
    return _UNSAFE.sub("_", PurePosixPath(path).name)[-100:]


def _copy(unit: Unit, member: Member, name: str, target: Path, first: int | None) -> None:
    """Copy one file, or its beginning. Raises InputError, or OutputError if it cannot be written."""
    if member.size is not None and member.size > _MOST_BYTES:
        raise _too_large(name, member.size)
    try:
        with _open_member(unit, member) as file:
            _write(_Limited(file, unit, name), target, first)
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such file", code="missing", source=name) from error
    except _DAMAGED as error:
        problem = f"{name}: cannot read ({printable(first_line(error))[:200]})"
        raise InputError(problem, "Export it again", code="damaged", source=name) from error
    except OSError as error:
        raise _cannot_read(unit, name, error) from error


def _cannot_read(unit: Unit, name: str, error: OSError) -> InputError:
    problem = f"{name}: cannot read ({printable(error.strerror or first_line(error))[:200]})"
    hint = "Export it again" if unit.root is None else "Check the address and the credentials"
    return InputError(problem, hint, source=name)


def _write(source: _Limited, target: Path, first: int | None) -> None:
    try:
        with open(target, "wb") as copy:
            if first is None:
                shutil.copyfileobj(source, copy, 1 << 20)
            else:
                copy.write(source.read(first))
    except OSError as error:  # never about the source: ``_Limited`` raises InputError
        problem = f"{target.parents[1]}: cannot write a copy of a scan ({error.strerror})"
        raise OutputError(problem, "Free some space there, or set TMPDIR, and run again to continue") from error


@contextmanager
def _open_member(unit: Unit, member: Member) -> Iterator[Any]:
    if unit.archive is None:
        with open_file(unit.root, member.path) as file:
            yield file
    elif member.offset is not None:
        with open_file(unit.root, unit.archive) as file:
            file.seek(member.offset)
            yield _Part(file, member.size or 0)
    else:
        with _zip_file(unit.root, unit.archive).open(member.path) as file:
            yield file


@lru_cache(maxsize=4)
def _zip_file(root: str | None, path: str) -> zipfile.ZipFile:
    """Keep zip files open: each opening reads the whole list of members."""
    return zipfile.ZipFile(open_file(root, path))


class _Part:
    """The next ``size`` bytes of an open file."""

    def __init__(self, file: Any, size: int) -> None:
        self._file, self._left = file, size

    def read(self, size: int, /) -> bytes:
        piece: bytes = self._file.read(min(size, self._left))
        if not piece and self._left:
            raise EOFError("the file ends early")
        self._left -= len(piece)
        return piece


class _Limited:
    """Reads a file up to the limit of a scan, whatever its header claims. Raises InputError, never OSError."""

    def __init__(self, file: Any, unit: Unit, name: str) -> None:
        self._file, self._unit, self._name, self._read = file, unit, name, 0

    def read(self, size: int = -1, /) -> bytes:
        try:
            piece: bytes = self._file.read(size)
        except OSError as error:
            raise _cannot_read(self._unit, self._name, error) from error
        self._read += len(piece)
        if self._read > _MOST_BYTES:
            raise _too_large(self._name, self._read)
        return piece


def _too_large(name: str, size: int) -> InputError:
    problem = f"{name}: more than {_MOST_BYTES >> 30} GiB"
    return InputError(problem, "Split it", code="too_large", value=size, limit=_MOST_BYTES, source=name)


def _too_large_together(unit: Unit, size: int) -> InputError:
    name = str(PurePosixPath(unit.name).parent)
    problem = f"{name}: its {len(unit.members):,} files have more than {_MOST_TOGETHER >> 30} GiB unpacked"
    hint = "Sort them into a folder for each study"
    return InputError(problem, hint, code="too_large", value=size, limit=_MOST_TOGETHER, source=name)
