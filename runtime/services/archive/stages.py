"""The work of the processes of Ray: read scans in tasks, and classify them in actors that keep a model open."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from mri_edge.bundles.bundle import Bundle
from mri_edge.errors import BundleError, EngineError, InputError, MriEdgeError
from mri_edge.inference.classifier import Classifier
from mri_edge.inference.heatmap.picture import draw
from mri_edge.inference.heatmap.score import required_score
from mri_edge.inference.heatmap.series_pictures import draw_series
from mri_edge.inference.prediction import Failure, Prediction, frame_name
from mri_edge.inference.preparing import Prepared, prepare_sources
from mri_edge.inference.selection import RunOptions
from mri_edge.inference.series import Plane, SeriesPrediction, classify_slices, combine, plan, what_ran
from mri_edge.scans.frame import Pixels, as_rgb, gray_channel
from mri_edge.scans.headers import slice_facts
from mri_edge.scans.options import ReadOptions
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.storage.atomic import atomic_write, make_folder

from .guard import MOST_CRASHES, Attempt, Isolation, crashed
from .inputs import UNIT
from .schema import FAILED, INPUT, OUTCOME, columns, table
from .units import Unit, local_files

_PREPARED = "prepared"
_PER_BLOCK = 128  # scans that travel together from a task to an actor
_TOGETHER = 8  # scans that are resized together
_PICTURES_PER_FOLDER = 1000

Slices = list[Prepared | Failure]


@dataclass(frozen=True)
class Work:
    """What every process of a run needs to know.

    Attributes
    ----------
    run
        How the model runs. The driver has chosen the artifact and the engine, so that all nodes run the same.
    sha256
        Of the artifact that the driver has opened.
    folder
        Working folder of the driver, to which relative paths refer on every node.
    out
        Folder of the results, for heatmaps; None if none are drawn.
    """

    model: str
    signed_by: str | None
    run: RunOptions
    sha256: str
    by: str
    plane: Plane
    batch: int | None
    folder: Path
    out: Path | None


def read_scans(inputs: pa.Table, work: Work, preprocessing: Preprocessing, ledger: Any) -> Iterator[pa.Table]:
    """Read the scans of one task. Yields tables of a number and of pickled slices, with one row for each scan.

    If an earlier attempt at the same scans ended its process, each scan is read in a child process.
    """
    if not inputs.num_rows:
        return
    _enter(work.folder)
    reading = work.run.reading
    numbers = inputs[INPUT].to_pylist()
    with Attempt(ledger, "read", numbers[0]) as attempt, Isolation() if attempt.earlier else nullcontext() as isolation:
        for start in range(0, len(numbers), _PER_BLOCK):
            units = [Unit.from_json(text) for text in inputs[UNIT][start : start + _PER_BLOCK].to_pylist()]
            if isolation is None:
                found = _read_units(units, preprocessing, reading)
            else:
                found = [_read_isolated(isolation, unit, preprocessing, reading) for unit in units]
            block = [_packed(slices) for slices in found]
            yield pa.table(
                [numbers[start : start + _PER_BLOCK], pa.array(block, pa.large_binary())], [INPUT, _PREPARED]
            )


def _enter(folder: Path) -> None:
    with suppress(OSError):  # not on this node: relative paths will name nothing
        os.chdir(folder)


def _read_isolated(isolation: Isolation, unit: Unit, preprocessing: Preprocessing, reading: ReadOptions) -> Slices:
    found = isolation.call(_read_units, [unit], preprocessing, reading)
    return [Failure(unit.name, crashed(unit.name))] if found is None else found[0]


def _read_units(units: Sequence[Unit], preprocessing: Preprocessing, reading: ReadOptions) -> list[Slices]:
    """Return the slices of each scan."""
    found: list[Slices] = []
    waiting: list[str] = []

    def read_waiting() -> None:
        for start in range(0, len(waiting), _TOGETHER):
            found.extend(_read_files(waiting[start : start + _TOGETHER], preprocessing, reading))
        waiting.clear()

    for unit in units:
        if unit.error is None and unit.root is None and unit.archive is None:
            waiting.append(unit.members[0].path)
            continue
        read_waiting()
        found.append(_read_elsewhere(unit, preprocessing, reading))
    read_waiting()
    return found


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
        return [_renamed(result, {path: name}) for result in slices]


def _renamed(result: Prepared | Failure | Prediction, names: dict[str, str]) -> Any:
    """Return a result with the name of its scan in place of that of the temporary copy."""
    if isinstance(result, Prepared):
        source = result.frame.source
        return replace(result, frame=replace(result.frame, source=names.get(source or "", source)))
    source = names.get(result.source or "", result.source)
    if isinstance(result, Prediction):
        return replace(result, source=source)
    error, path = result.error, result.source or ""
    problem, hint = (text.replace(path, source or "") if path else text for text in (error.problem, error.hint))
    renamed = InputError(problem, hint, code=error.code, value=error.value, limit=error.limit, source=source)
    return replace(result, source=source, error=renamed)


def _failure_of(record: dict[str, Any]) -> Failure:
    error = InputError(
        record["error"], record["hint"], code=record["code"], value=record["value"], limit=record["limit"]
    )
    return Failure(record["file"], error)


@dataclass(frozen=True)
class _Gray:
    """One channel of a gray picture, uint8 (H, W): a third of the bytes."""

    channel: Pixels


def _packed(slices: Slices) -> bytes:
    return pickle.dumps([_smaller(result) for result in slices], protocol=5)


def _smaller(result: Prepared | Failure) -> Any:
    if isinstance(result, Failure):
        return result
    frame = result.frame
    metadata = {key: value for key, value in frame.metadata.items() if not key.startswith("_")}
    gray = gray_channel(frame.pixels)
    pixels: Any = frame.pixels if gray is None else _Gray(gray)
    return replace(result, frame=replace(frame, pixels=pixels, metadata=metadata))


def _unpacked(content: bytes) -> Slices:
    slices: Slices = pickle.loads(content)  # noqa: S301 (from a process of this run)
    return [
        replace(result, frame=replace(result.frame, pixels=as_rgb(result.frame.pixels.channel)))
        if isinstance(result, Prepared) and isinstance(result.frame.pixels, _Gray)
        else result
        for result in slices
    ]


class _Model:
    """A process that keeps a model open.

    A model that cannot be opened is reported by the first batch and not by the constructor: Ray would start the process
    again and again, or end with a traceback in place of the error.
    """

    def __init__(self, work: Work, ledger: Any) -> None:
        self._work, self._ledger = work, ledger
        self._schema = columns(work.by)
        self._failure: MriEdgeError | None = None
        _enter(work.folder)
        try:
            self._classifier = _open(work)
        except MriEdgeError as error:
            self._failure = error

    def __call__(self, block: pa.Table) -> pa.Table:
        if self._failure is not None:
            raise self._failure
        results = table(self._rows(block), self._schema)
        failed = results[OUTCOME].to_pylist().count(FAILED)
        self._ledger.add.remote(results.num_rows, failed)
        return results

    def _rows(self, block: pa.Table) -> Iterable[tuple[int, dict[str, Any]]]:
        raise NotImplementedError


class Classify(_Model):
    """Classifies what ``read_scans`` yields."""

    def _rows(self, block: pa.Table) -> Iterator[tuple[int, dict[str, Any]]]:
        numbers: list[int] = []
        slices: Slices = []
        for number, content in zip(block[INPUT].to_pylist(), block[_PREPARED], strict=True):
            found = _unpacked(content.as_buffer())
            numbers += [number] * len(found)
            slices += found
        if not numbers:
            return
        with Attempt(self._ledger, "classify", numbers[0]) as attempt:
            if attempt.earlier >= MOST_CRASHES:
                raise EngineError(
                    f"the process that runs the model ended {attempt.earlier} times with the same scans",
                    "Try --engine or --provider with another value, or give the workers more memory",
                )
            results = self._classifier.predict_prepared(slices, batch_size=self._work.batch)
            yield from zip(numbers, (result.to_dict() for result in results), strict=True)


class ReadAndClassify(_Model):
    """Reads and classifies in one process: series, which are read a few slices at a time, and slices with heatmaps."""

    def _rows(self, block: pa.Table) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, text in zip(block[INPUT].to_pylist(), block[UNIT].to_pylist(), strict=True):
            unit = Unit.from_json(text)
            if unit.error is not None:
                yield number, unit.error
                continue
            with Attempt(self._ledger, "read and classify", number) as attempt, local_files(unit) as files:
                if attempt.earlier >= MOST_CRASHES:
                    yield number, Failure(unit.name, crashed(unit.name)).to_dict()
                    continue
                for name in files.values():
                    if isinstance(name, InputError):
                        yield number, Failure(name.source, name).to_dict()
                names = {path: name for path, name in files.items() if isinstance(name, str)}
                results = self._series if self._work.by == "series" else self._explained
                for result in results(number, names):
                    yield number, result.to_dict()

    def _series(self, number: int, names: dict[str, str]) -> Iterator[SeriesPrediction | Failure]:
        planned = plan(slice_facts(list(names), self._classifier.reading), self._work.plane)
        slices = classify_slices(planned, self._classifier, batch_size=self._work.batch)
        results: Iterable[SeriesPrediction | Failure] = combine(planned, slices, what_ran(self._classifier))
        if self._work.out is not None:
            results = draw_series(results, self._classifier, self._pictures(number), required_score(self._classifier))
        for result in results:
            if isinstance(result, Failure):
                yield _renamed(result, names)
                continue
            facts = tuple(replace(piece, source=names[piece.source]) for piece in result.series.slices)
            series = replace(result.series, slices=facts)
            answers = tuple(self._relative(_renamed(piece, names)) for piece in result.slices)
            curve = None if result.curve_file is None else self._below_out(result.curve_file)
            yield replace(result, series=series, slices=answers, curve_file=curve)

    def _explained(self, number: int, names: dict[str, str]) -> Iterator[Prediction | Failure]:
        score = required_score(self._classifier)
        folder = self._pictures(number)
        for result in self._classifier.predict_batches(names, batch_size=1, explain=True, keep_pixels=True):
            result = _renamed(result, names)  # noqa: PLW2901
            if isinstance(result, Prediction) and result.heatmap is not None and result.pixels is not None:
                make_folder(folder)
                path = folder / f"{frame_name('heatmap', result.index, result.frames)}.png"
                atomic_write(path, draw(result.pixels, result.heatmap, result, score))
                result = replace(result, heatmap_file=self._below_out(str(path)))  # noqa: PLW2901
            yield result

    def _pictures(self, number: int) -> Path:
        """Return the folder for the pictures of an input: names of scans repeat in every study of an archive."""
        assert self._work.out is not None  # noqa: S101 (heatmaps are drawn)
        return self._work.out / "heatmaps" / f"{number // _PICTURES_PER_FOLDER:06d}" / f"{number}"

    def _below_out(self, path: str) -> str:
        assert self._work.out is not None  # noqa: S101 (heatmaps are drawn)
        return Path(path).relative_to(self._work.out).as_posix()

    def _relative(self, result: Prediction | Failure) -> Prediction | Failure:
        if isinstance(result, Failure) or result.heatmap_file is None:
            return result
        return replace(result, heatmap_file=self._below_out(result.heatmap_file))


def _open(work: Work) -> Classifier:
    classifier = Classifier.load_with(work.run, Bundle.open(work.model, signed_by=work.signed_by))
    if classifier.artifact.sha256 != work.sha256:
        found = classifier.artifact.sha256[:12]
        classifier.close()
        raise BundleError(
            f"{work.model}: a worker has another {classifier.artifact.file} ({found}, not {work.sha256[:12]})",
            "Install the same bundle on every node",
        )
    return classifier
