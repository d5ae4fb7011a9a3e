"""Which files a command line means: files, folders, patterns, or a list on standard input."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable, Iterator
from typing import BinaryIO, overload

from .errors import InputError
from .images import SUFFIXES
from .prediction import Failure, Pause


@overload
def expand(arguments: Iterable[str], *, recursive: bool = False) -> Iterator[str | Failure]: ...


@overload
def expand(
    arguments: Iterable[str], *, recursive: bool = False, patience: float | None
) -> Iterator[str | Failure | Pause]: ...


def expand(
    arguments: Iterable[str], *, recursive: bool = False, patience: float | None = None
) -> Iterator[str | Failure | Pause]:
    """Yield the path of every scan that is meant, in order; a Failure where an argument means none.

    A folder means the pictures in it (by suffix, sorted by name; with ``recursive`` those of its
    subfolders too, and a Failure for one that cannot be listed), an argument with ``*``, ``?`` or ``[``
    that is no file means what it matches (``**`` any depth; with ``recursive`` folders too), ``-`` means
    the paths on standard input, one a line.

    Parameters
    ----------
    patience
        Seconds after which a Pause is yielded where the next line on standard input is not there yet.
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
                    yield from expand([line], recursive=recursive)
        elif "\0" in argument:
            yield argument  # no path, and glob would stumble over it
        elif os.path.isdir(argument):
            yield from _or_failure(_pictures(argument, recursive), argument, "the folder has no pictures in it")
        elif glob.has_magic(argument) and not os.path.lexists(argument):
            yield from _or_failure(_matches(argument, recursive), argument, "no file matches this pattern")
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


def _matches(pattern: str, recursive: bool) -> Iterator[str | Failure]:
    for path in sorted(glob.iglob(pattern, recursive=True)):
        if not os.path.isdir(path):
            yield path
        elif recursive and "**" not in pattern:  # which matches what is in the folders, too
            yield from _pictures(path, recursive)


def _pictures(folder: str, recursive: bool) -> Iterator[str | Failure]:
    try:
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        yield Failure(folder, InputError(f"{folder}: cannot list the folder ({error.strerror})"))
        return
    for entry in ordered:
        if _is_folder(entry):
            if recursive and not entry.is_symlink():  # a link could lead in circles
                yield from _pictures(entry.path, recursive)
        elif entry.name.lower().endswith(SUFFIXES):
            yield entry.path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to where this user may not look: whoever opens it says so
        return False


def _or_failure(paths: Iterator[str | Failure], argument: str, problem: str) -> Iterator[str | Failure]:
    empty = True
    for path in paths:
        empty = False
        yield path
    if empty:
        hint = f"Pictures end in {', '.join(SUFFIXES)}" if "folder" in problem else ""
        yield Failure(argument, InputError(f"{argument}: {problem}", hint, code="missing"))
