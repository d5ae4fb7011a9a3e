"""What ``predict`` does once its options are read: scans through a classifier, out as a form, a journal, heatmaps."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from mri_edge.errors import printable
from mri_edge.inference.classifier import Classifier
from mri_edge.inference.journal import Journal
from mri_edge.inference.prediction import Failure, Pause, Prediction
from mri_edge.scans.sources import expand

from .output import FORMS
from .progress import at_terminal, track

_PATIENCE = 0.05  # seconds that a list on standard input may stand still before what it named is answered


def classify(
    classifier: Classifier,
    scans: tuple[str, ...],
    *,
    form: str | None,
    recursive: bool,
    resume: Path | None,
    heatmap: Path | None,
    batch: int | None,
) -> int:
    """Write an answer for each scan; returns the exit code. Parameters are the options of ``predict``."""
    with _advice_when_interrupted(resume), ExitStack() as stack:
        sources: Iterable[str | Failure | Pause]
        sources = _flushing(expand(scans, recursive=recursive, patience=_PATIENCE, tell=_tell))
        journal = stack.enter_context(_journal(resume, classifier)) if resume else None
        if journal:
            sources = journal.remaining(sources)
        barred = at_terminal(sys.stderr) and (journal is not None or not at_terminal(sys.stdout))
        total = None
        if barred and "-" not in scans:
            sources = list(sources)  # for the time left; elsewhere they stay a stream, and so does a list that may grow
            total = len(sources)
        if heatmap and batch is None:
            batch = 1  # whole scans are kept until they are drawn, and drawing is what takes the time
        predictions = classifier.predict_batches(sources, batch_size=batch, keep_pixels=heatmap is not None)
        if heatmap:
            from mri_edge.inference.heatmap import draw_each

            predictions = draw_each(predictions, classifier, heatmap)
        report = _Report(predictions)
        results = track(report, "predict", total) if barred else report
        if journal:
            for result in results:
                journal.write(result)
            if journal.skipped:
                have = "scan has" if journal.skipped == 1 else "scans have"
                _tell(f"{journal.skipped} {have} a line already")
        else:
            for line in FORMS[form or "table"](results, classifier):
                _print(line, form, flush=report.seen % (batch or classifier.batch_size) == 0)
            _hand_on()  # here, where a full disk or a closed pipe still has its words and its exit code
        if heatmap and report.heatmaps:
            count = f"{report.heatmaps} {'heatmap' if report.heatmaps == 1 else 'heatmaps'}"
            _tell(f"{count} written to {heatmap}{os.sep}")
    return 1 if report.failed else 0


@contextmanager
def _advice_when_interrupted(resume: Path | None) -> Iterator[None]:
    """Turn Ctrl-C into an error that says how the next run can go on."""
    try:
        yield
    except KeyboardInterrupt as error:
        advice = "Run the same again to go on" if resume else "With --resume FILE the next run can go on from there"
        raise click.Abort(advice) from error


def _print(line: str, form: str | None, *, flush: bool) -> None:
    if form is None:
        click.echo(line)
    elif form == "csv" and at_terminal(sys.stdout):  # in a file names stay as they are; on a screen they could act
        print(printable(line), flush=True)
    else:  # as it is: click would take a colour's code out of a name. What comes at once is handed on at once
        print(line, flush=flush)


def _journal(path: Path, classifier: Classifier) -> Journal:
    return Journal(path, classifier.bundle.manifest.title, classifier.artefact)


def _flushing(sources: Iterable[str | Failure | Pause]) -> Iterator[str | Failure | Pause]:
    """The sources; whoever goes on after a Pause has answered all before it, so the answers are handed on."""
    for one in sources:
        yield one
        if isinstance(one, Pause):
            _hand_on()


def _tell(words: str) -> None:
    _hand_on()  # so that both streams, on one terminal, stay in order
    click.echo(f"mri-edge: {printable(words)}", err=True)


def _hand_on() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


class _Report:
    """Results on their way through, counted; says each failure on stderr as it comes by."""

    def __init__(self, results: Iterable[Prediction | Failure]) -> None:
        self.seen = 0
        self.failed = 0
        self.heatmaps = 0
        self._results = results

    def __iter__(self) -> Iterator[Prediction | Failure]:
        for result in self._results:
            self.seen += 1
            if isinstance(result, Failure):
                self.failed += 1
                _tell(str(result.error))
            elif result.heatmap is not None:
                self.heatmaps += 1
            yield result
