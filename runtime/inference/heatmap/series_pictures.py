"""Write the pictures of a series into a folder: its curve, and heatmaps of the slices that its score comes from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from mri_edge.bundles.manifest import Metric
from mri_edge.errors import InputError
from mri_edge.inference.classifier import Classifier
from mri_edge.inference.prediction import Failure, Prediction, frame_name
from mri_edge.inference.series import SeriesPrediction, counts, is_of
from mri_edge.scans.fallback import options_for
from mri_edge.storage.atomic import atomic_write, make_folder

from .curve import draw_curve
from .files import draw_each, frame_key, hash_of, target_file

MOST_HEATMAPS = 3
"""Heatmaps of a series. Each takes about 140 runs of the model, and neighboring slices look alike."""


def draw_series(
    results: Iterable[SeriesPrediction | Failure], classifier: Classifier, folder: Path, score: Metric | None
) -> Iterator[SeriesPrediction | Failure]:
    """Write the pictures of each classified series, and yield each result with their paths.

    The curve of the series that begins with ``a.dcm`` is ``folder/a.dcm.curve.png``. Heatmaps are drawn for the
    slices with the highest probabilities of the window that gave the score, which are read again for that. They are
    named as by ``draw_each``. ``score`` is as there.

    Raises
    ------
    OutputError
        The folder cannot be written.
    """
    for result in results:
        if isinstance(result, Failure) or result.score is None:
            yield result
            continue
        make_folder(folder)
        drawn = _with_heatmaps(result, classifier, folder, score)
        yield replace(drawn, curve_file=os.fspath(_write_curve(drawn, folder)))


def explain_leading(result: SeriesPrediction, classifier: Classifier) -> Iterator[tuple[int, Prediction]]:
    """Yield the slices of a series with the highest probabilities of the window that gave its score, explained.

    Each comes with its position in ``result.slices``. It is read and classified again, so that it has its heatmap and
    its pixels. A file that cannot be read any more, or that holds another instance now, is left out.
    """
    first, last = result.window or (0, -1)
    candidates = [(number, piece) for number in range(first, last + 1) if counts(piece := result.slices[number])]
    candidates.sort(key=lambda pair: -pair[1].probability)
    reading = options_for(result.series, classifier.reading)
    for number, piece in candidates[:MOST_HEATMAPS]:
        again = classifier.predict_frames(
            piece.source or "", indexes=(piece.index,), explain=True, keep_pixels=True, reading=reading
        )
        try:
            explained = next(again, None)
        except InputError:  # the file has changed since it was classified; its answer stays
            continue
        if explained is not None and is_of(explained, result.series.slices[number]):
            yield number, explained


def _with_heatmaps(
    result: SeriesPrediction, classifier: Classifier, folder: Path, score: Metric | None
) -> SeriesPrediction:
    slices = list(result.slices)
    for number, explained in explain_leading(result, classifier):
        piece = slices[number]
        for drawn in draw_each((explained,), folder, score):
            if isinstance(drawn, Prediction) and isinstance(piece, Prediction):
                slices[number] = replace(piece, heatmap_file=drawn.heatmap_file)
    return replace(result, slices=tuple(slices))


def _write_curve(result: SeriesPrediction, folder: Path) -> Path:
    facts = result.series.first
    name = frame_name(Path(facts.source).name, facts.index, facts.count)
    scan = hash_of(f"curve of {frame_key(facts.source, facts.index, facts.count)}")
    target = target_file(folder, f"{name}.curve", scan)
    atomic_write(target, draw_curve(result, scan=scan))
    return target
