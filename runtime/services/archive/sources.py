"""Find the scans that an archive consists of: folders, lists, object stores, and the members of zip and tar files."""

from __future__ import annotations

import posixpath
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

from mri_edge.errors import InputError, UsageError, first_line, printable
from mri_edge.scans import readers
from mri_edge.scans.sources import SkippedFiles, expand, kind_of

from .units import Member, Unit, is_remote, open_file, remote_filesystem

ARCHIVES = (".zip", ".tar")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
# Files that scanners and PACS write have names without a suffix, or unique identifiers, before which storescp of DCMTK
# writes the modality. Elsewhere than in folders of this machine the first bytes are not read to recognize a scan: it
# would take a request for each object.
_WITHOUT_SUFFIX = re.compile(r"[^.]+|(?:[A-Z]{2,3}\.)?[0-9.]+")
_HEADER_BYTES = 1 << 20  # of a member of a tar: tarfile reads its names and attributes as a whole
_MOST_FILES = 20_000  # of one folder, with results by series: a worker keeps their headers in memory

Notify = Callable[[str], None]


def find_units(sources: Iterable[str], *, by: str, notify: Notify) -> Iterator[Unit]:
    """Yield what is classified together: a scan, or with ``by="series"`` the scans of one folder.

    Parameters
    ----------
    sources
        Folders with their subfolders, files, patterns, ``-``, ``@FILE`` with a path on each line, addresses such as
        ``s3://bucket/prefix``, and zip and tar files, also within folders.
    notify
        Called with one line about each folder, zip or tar file or address with skipped files.

    Raises
    ------
    UsageError
        A list cannot be read or is no text, or an address holds credentials or is of an unknown kind.
    """
    scans = _expand(sources, notify)
    return scans if by == "slice" else _by_folder(scans)


def _expand(sources: Iterable[str], notify: Notify) -> Iterator[Unit]:
    for source in sources:
        for named in _lines(source[1:]) if source.startswith("@") else (source,):
            if is_remote(named):
                yield from _remote(named, notify)
                continue
            for path in expand([named], recursive=True, notify=notify, also=(*ARCHIVES, *_COMPRESSED)):
                if isinstance(path, InputError):
                    yield Unit.failed(path)
                else:
                    yield from _file(None, path, notify)


def _lines(path: str) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            for line in file:
                if "\0" in line:  # UTF-16, as PowerShell writes it, or a scan
                    problem = f"@{path}: holds binary data or UTF-16, not paths"
                    raise UsageError(problem, "Save the list as UTF-8, a path on each line")
                if line.strip():
                    yield line.rstrip("\r\n")
    except OSError as error:
        raise UsageError(f"@{path}: cannot read the list ({error.strerror})", "Name a text file of paths") from error


def _file(root: str | None, path: str, notify: Notify) -> Iterator[Unit]:
    """Yield one scan, or the scans in a zip or tar file."""
    lower = path.lower()
    if lower.endswith(ARCHIVES):
        yield from _members(root, path, notify)
    elif lower.endswith(_COMPRESSED):
        name = Unit(root, None, (Member(path),)).name
        problem = f"{name}: a compressed tar cannot be read from the middle"
        yield Unit.failed(
            InputError(problem, "Unpack it, or make a zip or a plain tar", code="unsupported", source=name)
        )
    else:
        yield Unit(root, None, (Member(path),))


def _remote(address: str, notify: Notify) -> Iterator[Unit]:
    from pyarrow import fs

    filesystem, start = remote_filesystem(address)
    try:
        info = filesystem.get_file_info(start)
        if info.type == fs.FileType.File:
            yield from _file(address, start, notify)
            return
        empty, skipped = True, SkippedFiles()
        waiting = [start]
        while waiting:  # folder by folder: the names in one folder are in memory, never all of them
            folder = waiting.pop()
            try:
                entries = filesystem.get_file_info(fs.FileSelector(folder))
            except OSError as error:
                empty = False
                yield _cannot_list(address, folder, error)
                continue
            entries.sort(key=lambda entry: entry.path)
            waiting += [entry.path for entry in reversed(entries) if entry.type == fs.FileType.Directory]
            for entry in entries:
                if entry.type == fs.FileType.Directory:
                    continue
                if _may_be_scan(entry.path):
                    empty = False
                    yield from _file(address, entry.path, notify)
                else:
                    _skip(entry.path, skipped)
    except OSError as error:
        yield _cannot_list(address, start, error)
        return
    name = Unit(address, None, (Member(start),)).name
    if empty:
        hint = str(skipped) or "Check the address"
        yield Unit.failed(InputError(f"{name}: no scans found", hint, code="missing"))
    elif str(skipped):
        notify(f"{name}: {skipped}")


def _cannot_list(address: str, path: str, error: OSError) -> Unit:
    name = Unit(address, None, (Member(path),)).name
    problem = f"{name}: cannot list ({printable(first_line(error))[:200]})"
    return Unit.failed(InputError(problem, "Check the address and the credentials", source=name))


def _may_be_scan(path: str) -> bool:
    name = PurePosixPath(path).name
    if name in ("", "DICOMDIR") or name.startswith("."):
        return False
    archive = name.lower().endswith((*ARCHIVES, *_COMPRESSED))
    return archive or readers.has_known_suffix(name) or _WITHOUT_SUFFIX.fullmatch(name) is not None


def _skip(path: str, skipped: SkippedFiles) -> None:
    name = PurePosixPath(path).name
    skipped.add(name, kind_of(name, b""))


def _members(root: str | None, path: str, notify: Notify) -> Iterator[Unit]:
    """Yield the scans in a zip or tar file. A damaged file gives a failure after the members before the damage."""
    name = Unit(root, None, (Member(path),)).name
    empty, skipped = True, SkippedFiles()
    try:
        with open_file(root, path) as file:
            for member in _zip_members(file) if path.lower().endswith(".zip") else _tar_members(file):
                if _may_be_scan(member.path):
                    empty = False
                    unit = Unit(root, path, (member,))
                    yield _not_read(unit) if member.size is None else unit
                else:
                    _skip(member.path, skipped)
    except OSError as error:
        yield Unit.failed(InputError(f"{name}: cannot read ({error.strerror or first_line(error)})", source=name))
    except (zipfile.BadZipFile, tarfile.TarError, NotImplementedError, RecursionError, ValueError, EOFError) as error:
        problem = f"{name}: damaged archive ({printable(first_line(error))[:200]})"
        yield Unit.failed(InputError(problem, "Export it again", code="damaged", source=name))
    else:
        if empty:
            yield Unit.failed(InputError(f"{name}: no scans in it", str(skipped), code="missing", source=name))
    if not empty and str(skipped):
        notify(f"{name}: {skipped}")


def _zip_members(file: Any) -> Iterator[Member]:
    """Yield the members, without a size if a later one of the same name replaces them."""
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if not info.filename.endswith("/"):  # ``is_dir`` fails without a name
                replaced = archive.getinfo(info.filename) is not info
                yield Member(info.filename, None, None if replaced else info.file_size)


def _tar_members(file: Any) -> Iterator[Member]:
    """Yield the members, without a size if they are links or sparse files."""
    headers: Any = _Headers(file)  # tarfile needs no more of a file
    with tarfile.open(fileobj=headers, mode="r:") as archive:
        for info in archive:
            headers.left = _HEADER_BYTES
            if info.issparse() or info.islnk() or info.issym():  # its content is not the next ``size`` bytes
                yield Member(info.name)
            elif info.isreg():
                yield Member(info.name, info.offset_data, info.size)
            archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every member in memory
        # At a header that it cannot read, tarfile ends as at the block of zeros that marks the end.
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"no header and no end mark at byte {archive.offset:,}")


class _Headers:
    """A tar of which tarfile reads a limited number of bytes for each member. It seeks over the contents."""

    def __init__(self, file: Any) -> None:
        self.seek, self.tell = file.seek, file.tell
        self.left = _HEADER_BYTES
        self._file = file

    def read(self, size: int) -> bytes:
        self.left -= size
        if self.left < 0:
            raise tarfile.ReadError(f"a header of more than {_HEADER_BYTES:,} bytes at byte {self.tell():,}")
        content: bytes = self._file.read(size)
        return content


def _not_read(unit: Unit) -> Unit:
    is_zip = str(unit.archive).lower().endswith(".zip")
    reason = "a later member has the same name" if is_zip else "a link or a sparse file, which is not read"
    problem = f"{unit.name}: {reason}"
    return Unit.failed(InputError(problem, "Unpack the archive", code="unsupported", source=unit.name))


def _by_folder(scans: Iterable[Unit]) -> Iterator[Unit]:
    """Join the scans of each folder. The scans of its subfolders may come between them."""
    open_folders: dict[tuple[str | None, str | None, str], list[Member]] = {}
    for scan in scans:
        if scan.error is not None:
            yield scan
            continue
        folder = posixpath.dirname(scan.members[0].path)
        for key in [key for key in open_folders if not _is_within(scan, folder, key)]:
            yield joined(Unit(key[0], key[1], tuple(open_folders.pop(key))))
        open_folders.setdefault((scan.root, scan.archive, folder), []).extend(scan.members)
    for key, members in open_folders.items():
        yield joined(Unit(key[0], key[1], tuple(members)))


def _is_within(scan: Unit, folder: str, key: tuple[str | None, str | None, str]) -> bool:
    root, archive, above = key
    if (root, archive) != (scan.root, scan.archive):
        return False
    return folder == above or not above or folder.startswith(above.rstrip("/") + "/")


def joined(unit: Unit) -> Unit:
    """Return a unit of several files, or a failure in its place if one process cannot classify so many together."""
    count = len(unit.members)
    if count <= _MOST_FILES:
        return unit
    name = posixpath.dirname(unit.name)
    problem = f"{name}: {count:,} files in one folder, or in folders that hold the same series"
    hint = "Sort them into a folder for each study, or use 'mri-edge predict --by series'"
    return Unit.failed(InputError(problem, hint, code="too_large", value=count, limit=_MOST_FILES, source=name))
