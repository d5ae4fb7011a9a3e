"""Which files a command line means: files, folders, patterns, or a list on standard input."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, overload

from mri_edge.errors import InputError
from mri_edge.inference.prediction import Failure, Pause
from mri_edge.scans.readers.picture import SUFFIXES

from .skipped import Skipped, special


def _say_nothing(words: str) -> None:
    pass


@overload
def expand(
    arguments: Iterable[str], *, recursive: bool = False, tell: Callable[[str], None] = _say_nothing
) -> Iterator[str | Failure]: ...


@overload
def expand(
    arguments: Iterable[str],
    *,
    recursive: bool = False,
    patience: float | None,
    tell: Callable[[str], None] = _say_nothing,
) -> Iterator[str | Failure | Pause]: ...


def expand(
    arguments: Iterable[str],
    *,
    recursive: bool = False,
    patience: float | None = None,
    tell: Callable[[str], None] = _say_nothing,
) -> Iterator[str | Failure | Pause]:
    """Yield the path of every scan that is meant, in order; a Failure where an argument means none.

    A folder means the pictures in it (by suffix, sorted by name; with ``recursive`` those of its
    subfolders too, and a Failure for one that cannot be listed), an argument with ``*``, ``?`` or ``[``
    that is no file means what it matches (``**`` any depth; with ``recursive`` folders too), ``-`` means
    the paths on standard input, one a line. Pipes, sockets and devices that a folder holds or a pattern matches are
    passed over; one that is named directly is meant.

    Parameters
    ----------
    patience
        Seconds after which a Pause is yielded where the next line on standard input is not there yet.
    tell
        Takes a line for people about each folder or pattern of which something was passed over.
    """
    for argument in arguments:
        if argument == "-":
            if sys.stdin is None:
                yield Failure(argument, InputError("-: standard input is closed"))
                continue
            for line in _lines(sys.stdin.buffer, patience):
                if isinstance(line, Pause):
                    yield line
                elif line and line != "-":
                    yield from expand([line], recursive=recursive, tell=tell)
        elif "\0" in argument:
            yield argument  # no path, and glob would stumble over it
        elif os.path.isdir(argument):
            skipped = Skipped()
            pictures = _pictures(argument, recursive, skipped)
            yield from _or_failure(pictures, argument, "the folder has no pictures in it", skipped, tell)
        elif glob.has_magic(argument) and not os.path.lexists(argument):
            skipped = Skipped()
            matches = _matches(argument, recursive, skipped)
            yield from _or_failure(matches, argument, "no file matches this pattern", skipped, tell)
        else:
            yield argument


def _lines(stream: BinaryIO, patience: float | None) -> Iterator[str | Pause]:
    """The lines of ``stream`` without their ends; decoded as file names, which may be anything but UTF-8."""
    try:
        # A stream without a file below it never keeps one waiting; on Windows select knows sockets alone.
        number = stream.fileno() if patience is not None and os.name == "posix" else None
    except OSError:
        number = None
    if number is None:
        yield from (os.fsdecode(line.rstrip(b"\r\n")) for line in stream)
        return
    from select import select

    begun = b""
    while True:
        if not select([number], [], [], patience)[0]:
            yield Pause()
        piece = os.read(number, 1 << 16)
        if not piece:
            break
        *whole, begun = (begun + piece).split(b"\n")
        yield from (os.fsdecode(line.rstrip(b"\r")) for line in whole)
    if begun:
        yield os.fsdecode(begun.rstrip(b"\r"))


def _matches(pattern: str, recursive: bool, skipped: Skipped) -> Iterator[str | Failure]:
    for path in sorted(glob.iglob(pattern, recursive=True)):
        if not os.path.isdir(path):
            if special(path):
                skipped.add(path)
            else:
                yield path
        elif "**" in pattern:  # which matches what is in the folders, too
            continue
        elif recursive:
            yield from _pictures(path, recursive, skipped)
        else:
            skipped.add_folder()


def _pictures(folder: str, recursive: bool, skipped: Skipped) -> Iterator[str | Failure]:
    try:
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        yield Failure(folder, InputError(f"{folder}: cannot list the folder ({error.strerror})"))
        return
    for entry in ordered:
        if _is_folder(entry):
            if not recursive:
                skipped.add_folder()
            elif entry.is_symlink():  # it could lead in circles
                skipped.add(entry.path, "link to a folder")
            else:
                yield from _pictures(entry.path, recursive, skipped)
        elif not entry.name.lower().endswith(SUFFIXES) or (not _is_file(entry) and special(entry.path)):
            skipped.add(entry.path)
        else:
            yield entry.path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to where this user may not look: whoever opens it says so
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Without a question to the disk for what is no link."""
    try:
        return entry.is_file()
    except OSError:  # as above
        return False


def _or_failure(
    paths: Iterator[str | Failure], argument: str, problem: str, skipped: Skipped, tell: Callable[[str], None]
) -> Iterator[str | Failure]:
    empty = True
    for path in paths:
        empty = False
        yield path
    words = str(skipped)
    if empty:
        suffixes = f"Pictures end in {', '.join(SUFFIXES)}" if "folder" in problem else ""
        hint = ". ".join(filter(None, (words, suffixes)))
        yield Failure(argument, InputError(f"{argument}: {problem}", hint, code="missing"))
    elif words:
        tell(f"{argument}: {words}")
