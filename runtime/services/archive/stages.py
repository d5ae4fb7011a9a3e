"""The work of the processes of Ray: actors that keep a model open, and tasks that read scans for those with a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from itertools import chain, groupby
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
from mri_edge.inference.selection import RunOptions
from mri_edge.inference.series import Plane, SeriesPrediction, classify_slices, combine, plan, what_ran
from mri_edge.scans.headers import slice_facts
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.storage.atomic import atomic_write, make_folder

from .guard import MOST_CRASHES, Attempt, Isolation, crashed
from .inputs import UNIT
from .packing import packed, unpacked
from .reading import Piece, read_ahead, read_units, renamed
from .schema import FAILED, INPUT, OUTCOME, columns, table
from .units import Unit, local_files

_PREPARED = "prepared"
PER_BLOCK = 128  # scans that travel together from a task to an actor
_BLOCK_BYTES = 32 << 20  # of fewer scans, if they have many slices
_PICTURES_PER_FOLDER = 1000


@dataclass(frozen=True)
class Work:
    """What every process of a run needs to know.

    Attributes
    ----------
    run
        How the model runs. The driver has chosen the artifact and the engine, so that all nodes run the same.
    title, sha256
        Of the model and of the artifact that the driver has opened.
    folder
        Working folder of the driver, to which relative paths refer on every node.
    out
        Folder of the results, for heatmaps; None if none are drawn.
    """

    model: str
    signed_by: str | None
    run: RunOptions
    title: str
    sha256: str
    by: str
    plane: Plane
    batch: int | None
    folder: Path
    out: Path | None


def read_scans(inputs: pa.Table, work: Work, preprocessing: Preprocessing, ledger: Any) -> Iterator[pa.Table]:
    """Read the scans of one task. Yields tables of a number and of packed slices, with one row for each scan.

    If an earlier attempt at the same scans ended its process, each scan is read in a child process.
    """
    if not inputs.num_rows:
        return
    _enter(work.folder)
    numbers = inputs[INPUT].to_pylist()
    with Attempt(ledger, "read", numbers[0]) as attempt, _isolation(attempt) as isolation:
        units = [Unit.from_json(text) for text in inputs[UNIT].to_pylist()]
        pieces = read_units(units, preprocessing, work.run.reading, isolation)
        scans = groupby(chain.from_iterable(pieces), lambda found: found[0])
        block: list[tuple[int, bytes]] = []
        for place, slices in scans:
            block.append((numbers[place], packed([result for _, result in slices])))
            if len(block) == PER_BLOCK or sum(len(content) for _, content in block) > _BLOCK_BYTES:
                yield _table(block)
                block = []
        if block:
            yield _table(block)


def _table(block: list[tuple[int, bytes]]) -> pa.Table:
    numbers, contents = zip(*block, strict=True)
    return pa.table([numbers, pa.array(contents, pa.large_binary())], [INPUT, _PREPARED])


def _enter(folder: Path) -> None:
    with suppress(OSError):  # not on this node: relative paths will name nothing
        os.chdir(folder)


def _isolation(attempt: Attempt) -> AbstractContextManager[Isolation | None]:
    return Isolation() if attempt.earlier else nullcontext()


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
        if not block.num_rows:
            return
        numbers = block[INPUT].to_pylist()
        with Attempt(self._ledger, "classify", numbers[0]) as attempt:
            _refuse_broken(attempt, MOST_CRASHES)
            waiting: Piece = []
            for number, content in zip(numbers, block[_PREPARED], strict=True):
                waiting += [(number, result) for result in unpacked(content.as_buffer())]
                if len(waiting) >= self._batch:
                    yield from self._classified(waiting)
                    waiting = []
            yield from self._classified(waiting)

    @property
    def _batch(self) -> int:
        return self._work.batch or self._classifier.batch_size

    def _classified(self, piece: Piece) -> Iterator[tuple[int, dict[str, Any]]]:
        """Classify slices, each with the number of its input, together."""
        results = self._classifier.predict_prepared([result for _, result in piece], batch_size=self._batch)
        yield from zip((number for number, _ in piece), (result.to_dict() for result in results), strict=True)


class ReadAndClassify(Classify):
    """Reads scans in a thread, one part ahead, and classifies them.

    If an earlier attempt at the same scans ended its process, each scan is read in a child process. Only the model can
    then end this process.
    """

    def _rows(self, block: pa.Table) -> Iterator[tuple[int, dict[str, Any]]]:
        if not block.num_rows:
            return
        numbers, texts = block[INPUT].to_pylist(), block[UNIT].to_pylist()
        preprocessing, reading = self._classifier.bundle.manifest.preprocessing, self._classifier.reading
        units = [Unit.from_json(text) for text in texts]
        with Attempt(self._ledger, "read and classify", numbers[0]) as attempt, _isolation(attempt) as isolation:
            _refuse_broken(attempt, MOST_CRASHES + 1)
            for piece in read_ahead(read_units(units, preprocessing, reading, isolation)):
                yield from self._classified([(numbers[place], result) for place, result in piece])


def _refuse_broken(attempt: Attempt, most: int) -> None:
    if attempt.earlier >= most:
        raise EngineError(
            f"the process that runs the model ended {attempt.earlier} times with the same scans",
            "Try --engine or --provider with another value, or give the workers more memory",
        )


class ClassifyWhole(_Model):
    """Reads and classifies one input after the other: the series of a folder, or a scan with its heatmaps."""

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
                yield renamed(result, names)
                continue
            facts = tuple(replace(piece, source=names[piece.source]) for piece in result.series.slices)
            series = replace(result.series, slices=facts)
            answers = tuple(self._relative(renamed(piece, names)) for piece in result.slices)
            curve = None if result.curve_file is None else self._below_out(result.curve_file)
            yield replace(result, series=series, slices=answers, curve_file=curve)

    def _explained(self, number: int, names: dict[str, str]) -> Iterator[Prediction | Failure]:
        score = required_score(self._classifier)
        folder = self._pictures(number)
        for result in self._classifier.predict_batches(names, batch_size=1, explain=True, keep_pixels=True):
            result = renamed(result, names)  # noqa: PLW2901
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
    # A recalibrated bundle has the same artifacts, and another threshold.
    artifact, title = classifier.artifact, classifier.bundle.manifest.title
    if (title, artifact.sha256) != (work.title, work.sha256):
        classifier.close()
        raise BundleError(
            f"{work.model}: a worker has {title}, {artifact.file} {artifact.sha256[:12]}, and not {work.title}, "
            f"{work.sha256[:12]}",
            "Install the same bundle on every node",
        )
    return classifier
