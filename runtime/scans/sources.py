"""List the scans that a command line names: files, folders, patterns, or paths on standard input.

It counts the files of a folder that are not scans by kind, so that none is skipped silently.
"""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from mri_edge.errors import InputError, printable

from . import readers
from .files import special_file_kind

_LONGEST_LINE = 1 << 16  # of standard input; Linux limits a path to 4,096 bytes
_SEPARATORS = re.escape(f"{os.sep}{os.altsep or ''}")
_ANY_DEPTH = re.compile(rf"(?<![^{_SEPARATORS}])\*\*([{_SEPARATORS}]+|$)")  # a part of a pattern that is ** alone
_MAX_NAMED = 3  # files of each kind that a message names; the others are only counted


def expand(
    arguments: Iterable[str],
    *,
    recursive: bool = False,
    notify: Callable[[str], None] = lambda message: None,
    also: tuple[str, ...] = (),
) -> Iterator[str | InputError]:
    """Yield the path of every named scan in order, and an InputError for an argument that names none.

    - A folder stands for the scans in it, sorted by name: files that ``readers.recognizes``, so no hidden ones.
      With ``recursive`` also those of its subfolders, and an InputError for a subfolder that cannot be listed.
    - An argument with ``*``, ``?`` or ``[`` that is not a file stands for the files that it matches (``**`` at any
      depth, without following links to folders; with ``recursive`` also for the scans in folders that it matches).
    - ``-`` stands for the paths on standard input, one per line. Reading ends at a line that cannot be a path.

    Pipes, sockets and devices are skipped in folders and in matches of a pattern, and yielded if named directly.

    Parameters
    ----------
    notify
        Called with one line about each folder or pattern with skipped files.
    also
        Suffixes in lower case of files that a folder stands for too, although they are no scans, such as ``".zip"``.
    """
    for argument in arguments:
        if argument == "-":
            if sys.stdin is None:
                yield InputError("-: standard input is closed", source=argument)
                continue
            for line in _lines(sys.stdin.buffer):
                # The line is not quoted: the header of a scan may name the patient.
                if "\0" in line or len(line) > _LONGEST_LINE:
                    what = "binary data" if "\0" in line else f"a line of more than {_LONGEST_LINE:,} bytes"
                    hint = "Pass a scan by its path; '-' reads one path per line"
                    yield InputError(f"-: standard input holds {what}, not paths", hint, source=argument)
                    break
                if line == "-":
                    hint = "Pass a file of this name as ./-"
                    yield InputError(
                        "-: a line of standard input is '-', which is standard input itself", hint, source=line
                    )
                elif line:
                    yield from expand([line], recursive=recursive, notify=notify, also=also)
        elif "\0" in argument:
            yield argument  # not a path, and glob would fail on it
        elif os.path.isdir(argument):
            skipped = SkippedFiles()
            scans = _scans_in(argument, recursive, skipped, also)
            yield from _with_report(scans, argument, "the folder has no scans in it", skipped, notify, _suffix_hint)
        elif glob.has_magic(argument) and not os.path.lexists(argument):
            skipped = SkippedFiles()
            matches = _matches(argument, recursive, skipped, also)
            yield from _with_report(matches, argument, "no file matches this pattern", skipped, notify)
        else:
            yield argument


def _lines(stream: BinaryIO) -> Iterator[str]:
    """Yield the lines of ``stream`` as they arrive, without line ends, decoded as file names (not always UTF-8).

    It reads the file descriptor directly. A thread that waits in the stream's own ``read`` holds the stream's lock, and
    Python aborts if that lock is taken at exit.
    """
    try:
        number = stream.fileno()
    except OSError:  # a stream in memory
        yield from (os.fsdecode(line.rstrip(b"\r\n")) for line in stream)
        return
    rest = b""
    while piece := os.read(number, 1 << 16):
        *lines, rest = (rest + piece).split(b"\n")
        yield from (os.fsdecode(line.rstrip(b"\r")) for line in lines)
        if len(rest) > _LONGEST_LINE:
            break  # no path, and it may have no end
    if rest:
        yield os.fsdecode(rest.rstrip(b"\r"))


def _matches(pattern: str, recursive: bool, skipped: SkippedFiles, also: tuple[str, ...]) -> Iterator[str | InputError]:
    for path in sorted(set(_glob(pattern, skipped))):
        if not os.path.isdir(path):
            if kind := special_file_kind(path):
                skipped.add(path, kind)
            else:
                yield path
        elif "**" in pattern:  # the files in this folder match as well
            continue
        elif recursive:
            yield from _scans_in(path, recursive, skipped, also)
        else:
            skipped.add_folder()


def _glob(pattern: str, skipped: SkippedFiles) -> Iterator[str]:
    """Yield what a pattern matches as ``glob`` does, but follow no links to folders below ``**``.

    A link may lead back to a parent folder. Two of them in one folder keep ``glob`` busy for ever.
    """
    any_depth = _ANY_DEPTH.search(pattern)
    if any_depth is None:
        yield from glob.iglob(pattern)
        return
    above = pattern[: any_depth.start()]
    below = pattern[any_depth.end() :] if any_depth[1] else "*"
    pending = list(glob.iglob(above)) if above else [""]  # each ends with a separator, as ``above`` does
    while pending:
        folder = pending.pop()
        yield from _glob(glob.escape(folder) + below, skipped)
        for entry in _reversed_entries(folder or os.curdir):
            if isinstance(entry, InputError) or entry.name.startswith(".") or not _is_folder(entry):
                continue
            if entry.is_symlink():
                skipped.add(entry.path, "link to a folder")
            else:
                pending.append(f"{folder}{entry.name}{os.sep}")


def _scans_in(folder: str, recursive: bool, skipped: SkippedFiles, also: tuple[str, ...]) -> Iterator[str | InputError]:
    pending = [*_reversed_entries(folder)]  # a stack, because folders may be nested deeper than Python's calls
    while pending:
        entry = pending.pop()
        if isinstance(entry, InputError):
            yield entry
        elif _is_folder(entry):
            if not recursive:
                skipped.add_folder()
            elif entry.is_symlink():  # it could lead back to a parent folder
                skipped.add(entry.path, "link to a folder")
            else:
                pending += _reversed_entries(entry.path)
        elif entry.name.startswith("."):
            skipped.add(entry.path, kind_of(entry.name, b""))
        elif not _is_file(entry) and (kind := special_file_kind(entry.path)):
            skipped.add(entry.path, kind)
        else:
            head = b""
            if (
                entry.name.lower().endswith(also)
                or readers.has_known_suffix(entry.path)
                or readers.recognizes_content(head := readers.first_bytes(entry.path), entry.path)
            ):
                yield entry.path
            else:
                skipped.add(entry.path, kind_of(entry.name, head))


def _reversed_entries(folder: str) -> Sequence[os.DirEntry[str] | InputError]:
    """Return what is in a folder, the last name first, or why it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name, reverse=True)
    except OSError as error:
        return [InputError(f"{folder}: cannot list the folder ({error.strerror})", source=folder)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder that may not be read: opening it will report that
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether the entry is a file. This takes a system call for links only."""
    try:
        return entry.is_file()
    except OSError:  # as in _is_folder
        return False


def _with_report(
    paths: Iterator[str | InputError],
    argument: str,
    problem: str,
    skipped: SkippedFiles,
    notify: Callable[[str], None],
    hint: Callable[[], str] = str,
) -> Iterator[str | InputError]:
    """Yield ``paths``, or an InputError if there are none; then report what was skipped."""
    empty = True
    for path in paths:
        empty = False
        yield path
    if empty:
        full_hint = ". ".join(filter(None, (str(skipped), hint())))
        yield InputError(f"{argument}: {problem}", full_hint, code="missing", source=argument)
    elif str(skipped):
        notify(f"{argument}: {skipped}")


def _suffix_hint() -> str:
    """List the suffixes of all readers. It is called only for an error, because it imports every reader."""
    return f"Scans end in {', '.join(readers.suffixes())}"


class SkippedFiles:
    """The files and subfolders of one folder that were skipped."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}
        self._folders = 0

    def add(self, path: str, kind: str) -> None:
        """Count a file of this kind."""
        names = self._names.setdefault(kind, [])
        self._counts[kind] = self._counts.get(kind, 0) + 1
        if len(names) < _MAX_NAMED:
            names.append(Path(path).name)

    def add_folder(self) -> None:
        """Count a subfolder that was not listed."""
        self._folders += 1

    def __str__(self) -> str:
        """``"3 files skipped: 2 DICOM (a.dcm, b.dcm), 1 .txt (notes.txt)"``; empty if nothing was skipped."""
        total = sum(self._counts.values())
        parts = []
        if total:
            only_kind = len(self._counts) == 1
            kinds = [
                f"{kind if only_kind else f'{count} {kind}'} ({self._names_of(kind)})"
                for kind, count in self._counts.items()
            ]
            parts.append(f"{total} {'file' if total == 1 else 'files'} skipped: {', '.join(kinds)}")
        if self._folders:
            parts.append(
                f"{self._folders} {'subfolder' if self._folders == 1 else 'subfolders'} skipped (see --recursive)"
            )
        return "; ".join(parts)

    def _names_of(self, kind: str) -> str:
        names = ", ".join(map(printable, self._names[kind]))
        return f"{names}, …" if self._counts[kind] > _MAX_NAMED else names


def kind_of(name: str, head: bytes) -> str:
    """Return the kind of a file that no reader recognizes, from its name and its first bytes."""
    if name.startswith("."):
        return "hidden"
    if head[128:132] == b"DICM":  # PS3.10 7.1; the reader recognizes all others
        return "DICOMDIR"
    return printable(Path(name).suffix) or "no suffix"
