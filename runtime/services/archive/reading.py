"""Read the scans of units: those of this machine together, and copies of those elsewhere one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from mri_edge.errors import InputError
from mri_edge.inference.prediction import Failure, Prediction
from mri_edge.inference.preparing import Prepared, prepare_sources
from mri_edge.scans.options import ReadOptions
from mri_edge.scans.preprocessing import Preprocessing

from .guard import Isolation, crashed
from .units import Unit, local_files

TOGETHER = 32  # scans that are read and resized together: in smaller parts, Python takes up to 10% longer

Key = TypeVar("Key")
Part = TypeVar("Part")

Slices = list[Prepared | Failure]


def read_units(
    units: Sequence[Unit], preprocessing: Preprocessing, reading: ReadOptions, isolation: Isolation | None = None
) -> list[Slices]:
    """Return the slices of each scan.

    With ``isolation``, each scan is read in a child process, and one that ends it each time becomes a Failure.
    """
    if isolation is not None:
        return [_read_isolated(isolation, unit, preprocessing, reading) for unit in units]
    found: list[Slices] = []
    waiting: list[str] = []

    def read_waiting() -> None:
        for start in range(0, len(waiting), TOGETHER):
            found.extend(_read_files(waiting[start : start + TOGETHER], preprocessing, reading))
        waiting.clear()

    for unit in units:
        if unit.error is None and unit.is_local:
            waiting.append(unit.members[0].path)
            continue
        read_waiting()
        found.append(_read_elsewhere(unit, preprocessing, reading))
    read_waiting()
    return found


def _read_isolated(isolation: Isolation, unit: Unit, preprocessing: Preprocessing, reading: ReadOptions) -> Slices:
    found = isolation.call(read_units, [unit], preprocessing, reading)
    return [Failure(unit.name, crashed(unit.name))] if found is None else found[0]


def _read_files(paths: list[str], preprocessing: Preprocessing, reading: ReadOptions) -> list[Slices]:
    """Return the slices of each file. Several files are resized together, which is faster."""
    found: list[Slices] = []
    for result in prepare_sources(paths, preprocessing, reading, keep_pixels=False):
        index = result.frame.index if isinstance(result, Prepared) else result.index
        if index == 0:
            found.append([])
        found[-1].append(result)
    if len(found) == len(paths):
        return found
    # A file without a first frame cannot be told from its neighbors
    return [_or_empty(path, prepare_sources([path], preprocessing, reading, keep_pixels=False)) for path in paths]


def _or_empty(name: str, slices: Slices) -> Slices:
    return slices or [Failure(name, InputError(f"{name}: holds no frames", code="damaged", source=name))]


def _read_elsewhere(unit: Unit, preprocessing: Preprocessing, reading: ReadOptions) -> Slices:
    """Return the slices of a scan in an object store or in a zip or tar file."""
    if unit.error is not None:
        return [_failure_of(unit.error)]
    with local_files(unit) as files:
        ((path, name),) = files.items()
        if isinstance(name, InputError):
            return [Failure(unit.name, name)]
        slices = _or_empty(path, prepare_sources([path], preprocessing, reading, keep_pixels=False))
        return [renamed(result, {path: name}) for result in slices]


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


def read_ahead(read: Callable[[Key], Part], keys: Iterable[Key]) -> Iterator[Part]:
    """Yield ``read(key)`` for each key. A thread reads the next part meanwhile, and only this, so memory is bounded."""
    with ThreadPoolExecutor(1, thread_name_prefix="read") as thread:
        waiting: Future[Part] | None = None
        for key in keys:
            reading = thread.submit(read, key)
            if waiting is not None:
                yield waiting.result()
            waiting = reading
        if waiting is not None:
            yield waiting.result()
