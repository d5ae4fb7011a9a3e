"""Read the scans of units: those of this machine together, and copies of those elsewhere one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby
from typing import Any

from mri_edge.errors import InputError
from mri_edge.inference.prediction import Failure, Prediction
from mri_edge.inference.preparing import Prepared, prepare_in_pieces
from mri_edge.scans.options import ReadOptions
from mri_edge.scans.preprocessing import Preprocessing

from .guard import Isolation, crashed
from .units import Unit, local_files

Result = Prepared | Failure
Piece = list[tuple[int, Result]]  # slices, each with the place of its scan among the units


def read_units(
    units: Sequence[Unit], preprocessing: Preprocessing, reading: ReadOptions, isolation: Isolation | None = None
) -> Iterator[Piece]:
    """Yield the slices of all scans in order, in lists of some MiB, because a scan may have any number of slices.

    With ``isolation``, each scan is read whole in a child process, and one that ends it each time becomes a Failure.
    """

    def together(numbered: tuple[int, Unit]) -> bool:
        return isolation is None and numbered[1].error is None and numbered[1].is_local

    for of_this_machine, run in groupby(enumerate(units), together):
        if of_this_machine:
            places, paths = zip(*((place, unit.members[0].path) for place, unit in run), strict=True)
            for piece in _read_files(paths, preprocessing, reading):
                yield [(places[index], result) for index, result in piece]
            continue
        for place, unit in run:
            alone = (
                [_read_isolated(isolation, unit, preprocessing, reading)]
                if isolation
                else (_read_elsewhere(unit, preprocessing, reading))
            )
            for slices in alone:
                yield [(place, result) for result in slices]


def _read_isolated(
    isolation: Isolation, unit: Unit, preprocessing: Preprocessing, reading: ReadOptions
) -> list[Result]:
    found = isolation.call(_read_whole, unit, preprocessing, reading)
    return [Failure(unit.name, crashed(unit.name))] if found is None else found


def _read_whole(unit: Unit, preprocessing: Preprocessing, reading: ReadOptions) -> list[Result]:
    return [result for piece in read_units([unit], preprocessing, reading) for _, result in piece]


def _read_files(paths: Sequence[str], preprocessing: Preprocessing, reading: ReadOptions) -> Iterator[Piece]:
    """Yield the slices of each file, with its place among the paths. Resizing several files together is faster."""
    place, without_frames = 0, True
    for piece in prepare_in_pieces(paths, preprocessing, reading, keep_pixels=False):
        found: Piece = []
        for result in piece:
            if result is not None:
                found.append((place, result))
                without_frames = False
                continue
            if without_frames:
                name = paths[place]
                error = InputError(f"{name}: holds no frames", code="damaged", source=name)
                found.append((place, Failure(name, error)))
            place, without_frames = place + 1, True
        yield found


def _read_elsewhere(unit: Unit, preprocessing: Preprocessing, reading: ReadOptions) -> Iterator[list[Result]]:
    """Yield the slices of a scan in an object store or in a zip or tar file."""
    if unit.error is not None:
        yield [_failure_of(unit.error)]
        return
    with local_files(unit) as files:
        ((path, name),) = files.items()
        if isinstance(name, InputError):
            yield [Failure(unit.name, name)]
            return
        for piece in _read_files([path], preprocessing, reading):
            yield [renamed(result, {path: name}) for _, result in piece]


def renamed(result: Prepared | Failure | Prediction, names: dict[str, str]) -> Any:
    """Return a result with the name of its scan in place of that of the temporary copy."""
    if isinstance(result, Prepared):
        source = result.frame.source
        return replace(result, frame=replace(result.frame, source=names.get(source or "", source)))
    source = names.get(result.source or "", result.source)
    if isinstance(result, Prediction):
        return replace(result, source=source)
    error, path = result.error, result.source or ""
    problem, hint = (text.replace(path, source or "") if path else text for text in (error.problem, error.hint))
    same = InputError(problem, hint, code=error.code, value=error.value, limit=error.limit, source=source)
    return replace(result, source=source, error=same)


def _failure_of(record: dict[str, Any]) -> Failure:
    error = InputError(
        record["error"], record["hint"], code=record["code"], value=record["value"], limit=record["limit"]
    )
    return Failure(record["file"], error)


def read_ahead(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Yield the pieces. A thread reads the next one meanwhile, and only this, so memory is bounded."""
    with ThreadPoolExecutor(1, thread_name_prefix="read") as thread:
        reading = thread.submit(next, pieces, None)
        while (piece := reading.result()) is not None:
            reading = thread.submit(next, pieces, None)
            yield piece
