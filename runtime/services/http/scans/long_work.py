"""Classify what takes long, in a thread: volumes, several files, series and heatmaps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from threading import Event
from time import monotonic
from typing import Any

from mri_edge.errors import InputError
from mri_edge.inference.heatmap.score import required_score
from mri_edge.inference.prediction import Failure, Prediction
from mri_edge.inference.preparing import Decoded, decode_or_fail, prepare
from mri_edge.inference.series import SeriesPrediction, StudyPrediction, combine, combine_studies, plan, what_ran
from mri_edge.scans.fallback import options_for
from mri_edge.scans.frame import Source
from mri_edge.scans.headers import slice_facts
from mri_edge.scans.options import ReadOptions
from mri_edge.scans.series import SliceFacts
from mri_edge.services.http.errors import RequestRefused
from mri_edge.services.http.limits import MAX_FRAMES, expired
from mri_edge.services.http.models import SCANS, ServedModel

from .results import Options, as_dict, png, section
from .uploads import Upload

_BATCH = 8  # frames that are prepared together
_PICTURES = 32 << 20  # characters of base64 in one answer, which is in memory several times while it is sent


class ScanWork:
    """The work for one request. It ends when ``stopped`` is set, or at the deadline.

    Then it ends at the next frame, and a heatmap at the next run of the engine.
    """

    def __init__(self, model: ServedModel, options: Options, deadline: float, stopped: Event) -> None:
        self._model = model
        self._options = options
        self._deadline = deadline
        self._stopped = stopped
        self._frames = 0
        self._pictures: dict[tuple[str | None, int], str] = {}
        self._left = _PICTURES

    def run(self, upload: Upload) -> list[dict[str, Any]]:
        """Return a result for each frame, series or study, as JSON. Raises RequestRefused and MriEdgeError."""
        classifier = self._model.classifier
        if self._options.by != "slice":
            return list(self._series(upload))
        if self._options.heatmap:
            required_score(classifier)  # refuse before the work
        sources: list[Source] = [upload.scan] if upload.scan is not None else [*upload.paths()]
        if len(sources) > 1 and (self._options.heatmap or self._options.index is not None):
            raise RequestRefused(400, "usage", "heatmap and index are about one scan. Send one file")
        results = [as_dict(result, self._options, classifier) for result in self._classify(sources, classifier.reading)]
        if not results and self._options.index is not None:
            raise RequestRefused(422, "no_frame", f"the scan has no frame with the index {self._options.index}")
        return results

    def _classify(self, sources: Iterable[Source], reading: ReadOptions) -> Iterator[Prediction | Failure]:
        """Classify the frames of some scans in order, with the same reading."""
        waiting: list[Decoded] = []
        for source in sources:
            for result in decode_or_fail(source, reading):
                self._check()
                index, count = (
                    (result.index, result.frames)
                    if isinstance(result, Failure)
                    else (result.frame.index, result.frame.count)
                )
                self._count(count if index == 0 else 0)
                if isinstance(result, Failure):
                    if count > 1 and self._options.index not in (None, index):
                        continue
                    yield from self._answers(waiting)
                    waiting = []
                    yield result
                    continue
                if self._options.index not in (None, index):
                    continue
                if self._options.heatmap and self._options.index is None and count > 1:
                    raise RequestRefused(
                        400, "usage", f"the scan has {count} frames. Choose one for the heatmap with index"
                    )
                waiting.append(result)
                if len(waiting) == _BATCH:
                    yield from self._answers(waiting)
                    waiting = []
        yield from self._answers(waiting)

    def _answers(self, waiting: list[Decoded]) -> Iterator[Prediction]:
        if not waiting:
            return
        classifier, options = self._model.classifier, self._options
        keep_pixels = options.picture or options.heatmap
        prepared = prepare(waiting, classifier.bundle.manifest.preprocessing, keep_pixels=keep_pixels)
        if options.heatmap:  # not in the engine's thread, where other requests would wait for its 140 runs
            yield from self._model.explain(prepared, self._check)
        else:
            yield from self._model.batcher.run_from_thread(SCANS, prepared, self._deadline)

    def _series(self, upload: Upload) -> Iterator[dict[str, Any]]:
        classifier = self._model.classifier
        planned = plan(self._counted(slice_facts(upload.paths(), classifier.reading)), self._options.plane)

        def slices() -> Iterator[Prediction | Failure]:
            seen: set[str] = set()
            for series in planned.taken:
                sources = dict.fromkeys(facts.source for facts in series.slices if facts.source not in seen)
                seen.update(sources)
                for result in self._classify(sources, options_for(series, classifier.reading)):
                    if isinstance(result, Prediction) and result.pixels is not None and self._left > 0:
                        picture = png(section(result.pixels))
                        self._pictures[result.source, result.index] = picture
                        self._left -= len(picture)
                    yield result

        answers: Iterator[SeriesPrediction | StudyPrediction | Failure]
        answers = combine(planned, slices(), what_ran(classifier))
        if self._options.by == "study":
            answers = combine_studies(answers, planned)
        for answer in answers:
            record = answer.to_dict()
            self._add_pictures(record)
            yield record

    def _add_pictures(self, record: dict[str, Any]) -> None:
        """Add to each slice its picture, if the request asks for pictures."""
        for series in record.get("series") or [] if record.get("by") == "study" else [record]:
            for piece in series.get("slices", []):
                picture = self._pictures.get((piece.get("file"), piece.get("index", 0)))
                if picture is not None:
                    piece["picture"] = picture

    def _counted(self, facts: Iterable[SliceFacts | InputError]) -> Iterator[SliceFacts | InputError]:
        for number, found in enumerate(facts, 1):
            self._check()
            if number > MAX_FRAMES:
                raise _too_many()
            yield found

    def _count(self, frames: int) -> None:
        self._frames += frames
        if self._frames > MAX_FRAMES:
            raise _too_many()

    def _check(self) -> None:
        if self._stopped.is_set() or monotonic() >= self._deadline:
            raise expired()


def _too_many() -> RequestRefused:
    return RequestRefused(413, "too_many_frames", f"the upload has more than {MAX_FRAMES:,} slices. Send fewer")
