"""List the scans that a command line names: files, folders, patterns, or paths on standard input."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from mri_edge.errors import InputError

from . import readers
from .skipped import SkippedFiles, special


def expand(
    arguments: Iterable[str], *, recursive: bool = False, notify: Callable[[str], None] = lambda message: None
) -> Iterator[str | InputError]:
    """Yield the path of every named scan in order, and an InputError for an argument that names none.

    - A folder stands for the scans in it, sorted by name: files that ``readers.recognizes``. With ``recursive``
      also those of its subfolders, and an InputError for a subfolder that cannot be listed.
    - An argument with ``*``, ``?`` or ``[`` that is no file stands for the files that it matches (``**`` at any
      depth; with ``recursive`` also for the scans in folders that it matches).
    - ``-`` stands for the paths on standard input, one per line.

    Pipes, sockets and devices in a folder or behind a pattern are skipped. One that is named directly is yielded.

    Parameters
    ----------
    notify
        Called with one line for each folder or pattern with skipped files.
    """
    for argument in arguments:
        if argument == "-":
            if sys.stdin is None:
                yield InputError("-: standard input is closed", source=argument)
                continue
            listed = (line for line in _lines(sys.stdin.buffer) if line and line != "-")
            yield from expand(listed, recursive=recursive, notify=notify)
        elif "\0" in argument:
            yield argument  # not a path, and glob would fail on it
        elif os.path.isdir(argument):
            skipped = SkippedFiles()
            scans = _scans_in(argument, recursive, skipped)
            hint = f"Pictures end in {', '.join(readers.suffixes())}"
            yield from _or_error(scans, argument, "the folder has no pictures in it", hint, skipped, notify)
        elif glob.has_magic(argument) and not os.path.lexists(argument):
            skipped = SkippedFiles()
            matches = _matches(argument, recursive, skipped)
            yield from _or_error(matches, argument, "no file matches this pattern", "", skipped, notify)
        else:
            yield argument


def _lines(stream: BinaryIO) -> Iterator[str]:
    """Yield the lines of ``stream`` as they come, without line ends, decoded as file names (not always UTF-8).

    The file descriptor is read directly. A thread that waits inside the stream's own ``read`` holds its lock, and
    Python aborts when it finds that lock taken at exit.
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
    if rest:
        yield os.fsdecode(rest.rstrip(b"\r"))


def _matches(pattern: str, recursive: bool, skipped: SkippedFiles) -> Iterator[str | InputError]:
    for path in sorted(glob.iglob(pattern, recursive=True)):
        if not os.path.isdir(path):
            if special(path):
                skipped.add(path)
            else:
                yield path
        elif "**" in pattern:  # the files in this folder match as well
            continue
        elif recursive:
            yield from _scans_in(path, recursive, skipped)
        else:
            skipped.add_folder()


def _scans_in(folder: str, recursive: bool, skipped: SkippedFiles) -> Iterator[str | InputError]:
    try:
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        yield InputError(f"{folder}: cannot list the folder ({error.strerror})", source=folder)
        return
    for entry in ordered:
        if _is_folder(entry):
            if not recursive:
                skipped.add_folder()
            elif entry.is_symlink():  # it could lead in circles
                skipped.add(entry.path, "link to a folder")
            else:
                yield from _scans_in(entry.path, recursive, skipped)
        elif (_is_file(entry) or not special(entry.path)) and readers.recognizes(entry.path):
            yield entry.path
        else:
            skipped.add(entry.path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder that may not be read: opening it will report that
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether the entry is a file; costs a system call for links only."""
    try:
        return entry.is_file()
    except OSError:  # as in _is_folder
        return False


def _or_error(
    paths: Iterator[str | InputError],
    argument: str,
    problem: str,
    hint: str,
    skipped: SkippedFiles,
    notify: Callable[[str], None],
) -> Iterator[str | InputError]:
    """Yield ``paths``, or an InputError if there are none; then report what was skipped."""
    empty = True
    for path in paths:
        empty = False
        yield path
    if empty:
        full_hint = ". ".join(filter(None, (str(skipped), hint)))
        yield InputError(f"{argument}: {problem}", full_hint, code="missing", source=argument)
    elif str(skipped):
        notify(f"{argument}: {skipped}")
