"""Which files a command line means: files, folders, patterns, or a list on standard input."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable, Iterator

from .errors import InputError
from .images import SUFFIXES
from .prediction import Failure


def expand(arguments: Iterable[str], *, recursive: bool = False) -> Iterator[str | Failure]:
    """Yield the path of every scan that is meant, in order; a Failure where an argument means none.

    A folder means the pictures in it (by suffix, sorted by name; with ``recursive`` those of its
    subfolders too), an argument with ``*``, ``?`` or ``[`` that is no file means what it matches
    (``**`` any depth), ``-`` means the paths on standard input, one a line.
    """
    for argument in arguments:
        if argument == "-":
            if sys.stdin is None:
                yield Failure(argument, InputError("-: standard input is closed"))
                continue
            # As bytes: a name may be anything but UTF-8.
            lines = (os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer)
            yield from expand((line for line in lines if line and line != "-"), recursive=recursive)
        elif "\0" in argument:
            yield argument  # no path, and glob would stumble over it
        elif os.path.isdir(argument):
            yield from _or_failure(_pictures(argument, recursive), argument, "the folder has no pictures in it")
        elif glob.has_magic(argument) and not os.path.lexists(argument):
            found = sorted(path for path in glob.iglob(argument, recursive=True) if not os.path.isdir(path))
            yield from _or_failure(iter(found), argument, "no file matches this pattern")
        else:
            yield argument


def _pictures(folder: str, recursive: bool) -> Iterator[str]:
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if entry.is_dir():
            if recursive and not entry.is_symlink():  # a link could lead in circles
                yield from _pictures(entry.path, recursive)
        elif entry.name.lower().endswith(SUFFIXES):
            yield entry.path


def _or_failure(paths: Iterator[str], argument: str, problem: str) -> Iterator[str | Failure]:
    empty = True
    try:
        for path in paths:
            empty = False
            yield path
    except OSError as error:
        yield Failure(argument, InputError(f"{argument}: cannot list the folder ({error.strerror})"))
        return
    if empty:
        hint = f"Pictures end in {', '.join(SUFFIXES)}" if "folder" in problem else ""
        yield Failure(argument, InputError(f"{argument}: {problem}", hint))
