"""The work of ``predict --by series`` and ``--by study``: read headers, classify the slices, print the answers."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from mri_edge.commands.progress import at_terminal, track
from mri_edge.inference.aggregate import rule_of
from mri_edge.inference.classifier import Classifier
from mri_edge.inference.prediction import Failure, Prediction
from mri_edge.inference.series import (
    By,
    Plan,
    Plane,
    SeriesPrediction,
    StudyPrediction,
    classify_slices,
    combine,
    combine_studies,
    plan,
    what_ran,
)
from mri_edge.scans.headers import slice_facts
from mri_edge.scans.sources import expand

from .classify import (
    Counter,
    explain_how_to_continue,
    flush_stdout,
    left_out,
    new_identification,
    notify,
    output_form,
    print_line,
)
from .series_output import SERIES_FORMS

if TYPE_CHECKING:
    from .dicom_output import DicomOutput


def classify_series(
    classifier: Classifier,
    scans: tuple[str, ...],
    *,
    by: By,
    plane: Plane,
    form: str | None,
    recursive: bool,
    resume: Path | None,
    heatmap: Path | None,
    dicom: DicomOutput | None,
    identified: bool,
    batch: int | None,
) -> int:
    """Write a result for each series or study and return the exit code. Parameters are the options of ``predict``."""
    if heatmap:
        from mri_edge.inference.heatmap.score import required_score

        score = required_score(classifier)
    with explain_how_to_continue(resume), ExitStack() as stack:
        found = track(slice_facts(expand(scans, recursive=recursive, notify=notify), classifier.reading), "headers")
        planned = plan(found, plane)
        everything_skipped = bool(planned.series) and not planned.sources
        journal = None
        if resume:
            from mri_edge.inference.journal import SeriesJournal

            manifest = classifier.bundle.manifest
            window = classifier.reading.window_name
            journal = stack.enter_context(SeriesJournal(resume, manifest.title, classifier.artifact, by, window))
            number = len(planned.series)
            planned = planned.without(journal.has, by, rule_of(manifest))
            if done := number - len(planned.series):
                have = "has" if done == 1 else "have"
                notify(f"{done} series {have} a result already{left_out(heatmap, dicom)}")
        _report(planned)
        slices = sum(len(series.slices) for series in planned.taken)
        predictions = Counter(classify_slices(planned, classifier, batch_size=batch))
        shown = at_terminal(sys.stderr) and (journal is not None or not at_terminal(sys.stdout))
        pieces: Iterable[Prediction | Failure] = track(predictions, "predict", slices) if shown else predictions
        answers: Iterable[SeriesPrediction | Failure] = combine(planned, pieces, what_ran(classifier))
        if heatmap:
            from mri_edge.inference.heatmap.series_pictures import draw_series

            answers = draw_series(answers, classifier, heatmap, score)
        if dicom:
            answers = dicom.each(answers)
        identification = new_identification() if identified else None
        if identification:
            answers = identification.series(answers)
        outcome = _Outcome(combine_studies(answers, planned) if by == "study" else answers)
        if journal:
            for result in outcome:
                journal.write(result)
        else:
            for line in SERIES_FORMS[output_form(form, identified)](outcome, classifier):
                print_line(line, form, flush=True)
            flush_stdout()
        if heatmap and outcome.curves:
            plural = "s" if outcome.curves > 1 else ""
            notify(f"{outcome.curves} curve{plural}, and heatmaps of leading slices, written to {heatmap}{os.sep}")
        if dicom:
            dicom.report()
    failed = outcome.failed or (dicom and dicom.failed) or (identification and identification.failed)
    return 1 if failed or everything_skipped else 0


def _report(planned: Plan) -> None:
    """Print on stderr what has no header, what is skipped, and which files are a series of their own."""
    for failure in planned.failures:
        notify(str(failure.error))
    for series, reason in zip(planned.series, planned.skipped, strict=True):
        if reason is not None:
            count = len(series.slices)
            slices = "1 slice" if count == 1 else f"{count} slices"
            advice = ". --plane any takes it" if reason.code == "plane" else ""
            notify(f"{series.first.source}: series of {slices} skipped: {reason}{advice}")
    pictures = sum(series.first.kind is None for series in planned.series)
    if pictures:
        files = "1 picture has no header, and is" if pictures == 1 else f"{pictures} pictures have no header: each is"
        notify(f"{files} a series of its own")


class _Outcome:
    """Yields the results, and counts failures and curves."""

    def __init__(self, results: Iterable[SeriesPrediction | StudyPrediction | Failure]) -> None:
        self.failed = 0
        self.curves = 0
        self._results = results

    def __iter__(self) -> Iterator[SeriesPrediction | StudyPrediction | Failure]:
        for result in self._results:
            if isinstance(result, Failure):
                self.failed += 1
            else:
                self.failed += result.failed
                members = result.series if isinstance(result, StudyPrediction) else (result,)
                self.curves += sum(member.curve_file is not None for member in members)
            yield result
