"""Join folders that hold slices of the same series, so that the series gets one row, from the headers of all files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from mri_edge.errors import InputError
from mri_edge.scans import readers
from mri_edge.scans.headers import slice_facts
from mri_edge.scans.options import ReadOptions

from .cluster import WORK_CPUS
from .inputs import UNIT, read_inputs
from .schema import INPUT
from .sources import Notify, joined
from .units import Member, Unit, local_files

_WAITING = 2  # tasks for each core
_HASH_BYTES = 8  # of a series: it is in memory for each series of the archive
_HEADER_BYTES = 1 << 20  # of a file elsewhere: the header of a slice, or the whole slice

SeriesOf = tuple[int, set[bytes]]


def read_all(folder: Path, count: int, per_part: int) -> Iterator[tuple[int, Unit]]:
    """Yield the number and the unit of every input in a list."""
    for start in range(0, count, per_part):
        yield from _read_part(folder, start, per_part)


def _read_part(folder: Path, start: int, per_part: int) -> Iterator[tuple[int, Unit]]:
    for part in read_inputs(folder, start, per_part):
        for number, text in zip(part[INPUT].to_pylist(), part[UNIT].to_pylist(), strict=True):
            yield number, Unit.from_json(text)


def series_of_inputs(
    folder: Path, count: int, per_part: int, working_folder: Path, reading: ReadOptions, cpus: int, notify: Notify
) -> Iterator[SeriesOf]:
    """Yield the series of each input, which tasks of Ray read from the headers.

    The inputs of a task that ends with its process are read again, each in a task of its own. Those that end it again
    are left out, and ``notify`` is called with their number: their scans get their failures when they are classified.
    """
    task = ray.remote(num_cpus=WORK_CPUS, max_retries=1)(_series_of_part)
    waiting: dict[Any, tuple[int, int | None]] = {}
    left_out = 0

    def submit(start: int, only: int | None = None) -> None:
        waiting[task.remote(folder, start, per_part, working_folder, reading, only)] = start, only

    def first() -> list[SeriesOf]:
        """Remove the first task that ends, and return what it found."""
        nonlocal left_out
        ended = ray.wait(list(waiting))[0][0]
        start, only = waiting.pop(ended)
        try:
            found: list[SeriesOf] = ray.get(ended)
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
            if only is not None:
                left_out += 1
                return []
            for number in range(start, min(start + per_part, count)):
                submit(start, number)
            return []
        return found

    for start in range(0, count, per_part):
        submit(start)
        while len(waiting) >= _WAITING * cpus:
            yield from first()
    while waiting:
        yield from first()
    if left_out:
        folders, its = ("folder is", "its") if left_out == 1 else ("folders are", "their")
        notify(f"{left_out:,} {folders} not joined with others: reading {its} headers ended the process")


def _series_of_part(
    folder: Path, start: int, per_part: int, working_folder: Path, reading: ReadOptions, only: int | None = None
) -> list[SeriesOf]:
    """Return the series of each input of a part of the list, or of one of them."""
    with suppress(OSError):  # not on this node
        os.chdir(working_folder)
    units = [pair for pair in _read_part(folder, start, per_part) if only in (None, pair[0])]
    return [(number, _series_of(unit, reading)) for number, unit in units if unit.error is None]


def _series_of(unit: Unit, reading: ReadOptions) -> set[bytes]:
    """Return hashes of the series of a unit and of where it is: units of two archives cannot become one."""
    unit = replace(unit, members=tuple(member for member in unit.members if _may_have_header(member.path)))
    place = json.dumps([unit.root, unit.archive])
    with local_files(unit, _HEADER_BYTES) as files:
        facts = slice_facts((path for path, name in files.items() if isinstance(name, str)), reading)
        return {
            hashlib.blake2b(f"{place} {piece.series}".encode(), digest_size=_HASH_BYTES).digest()
            for piece in facts
            if not isinstance(piece, InputError) and piece.series
        }


def _may_have_header(path: str) -> bool:
    """Whether a file is no picture. Only the name is looked at: the file may be elsewhere."""
    reader = readers.reader_by_suffix(path)
    return reader is None or hasattr(reader, "slice_facts")


def leaders(found: Iterable[SeriesOf]) -> dict[int, int]:
    """Return, for each input that shares a series with an earlier one, the first input that it belongs to.

    It takes about 200 bytes of memory for each series.
    """
    above: dict[int, int] = {}

    def first(number: int) -> int:
        while number in above:
            above[number] = above.get(above[number], above[number])  # shortens the path for the next call
            number = above[number]
        return number

    owner: dict[bytes, int] = {}
    for number, series in found:
        for key in series:
            one, other = sorted((first(owner.setdefault(key, number)), first(number)))
            if one != other:
                above[other] = one
    return {number: first(number) for number in above}


def join(units: Iterable[tuple[int, Unit]], again: Iterable[tuple[int, Unit]], above: dict[int, int]) -> Iterator[Unit]:
    """Yield the units of a list, with the files of those that ``leaders`` found in the first unit of each.

    ``units`` and ``again`` read the same list: only files of units that are joined are in memory.
    """
    more: dict[int, list[Member]] = {}
    for number, unit in units:
        if number in above:
            more.setdefault(above[number], []).extend(unit.members)
    for number, unit in again:
        if number in more:
            yield joined(replace(unit, members=(*unit.members, *more.pop(number))))
        elif number not in above:
            yield unit
