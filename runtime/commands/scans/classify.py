"""The work of ``predict``: classify the scans, print the results or append them to a journal, draw heatmaps."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mri_edge.commands.output import FORMS
from mri_edge.commands.progress import at_terminal, track
from mri_edge.errors import InputError, printable
from mri_edge.inference.classifier import Classifier
from mri_edge.inference.prediction import Failure, Prediction
from mri_edge.scans.sources import expand

if TYPE_CHECKING:
    from mri_edge.inference.journal import Journal

    from .dicom_output import DicomOutput
    from .identified import Identification

_MAX_WAIT_S = 0.05  # how long a scan from standard input waits for others to fill its batch


def classify(
    classifier: Classifier,
    scans: tuple[str, ...],
    *,
    form: str | None,
    recursive: bool,
    resume: Path | None,
    heatmap: Path | None,
    dicom: DicomOutput | None,
    identified: bool,
    batch: int | None,
) -> int:
    """Write a result for each scan and return the exit code. Parameters are the options of ``predict``."""
    if heatmap:
        from mri_edge.inference.heatmap.score import required_score

        score = required_score(classifier)
    streamed = "-" in scans
    with explain_how_to_continue(resume), ExitStack() as stack:
        sources: Iterable[str | InputError] = expand(scans, recursive=recursive, notify=notify)
        journal = stack.enter_context(_journal(resume, classifier)) if resume else None
        if journal:
            sources = journal.remaining(sources)
        show_progress = at_terminal(sys.stderr) and (
            journal is not None or heatmap is not None or not at_terminal(sys.stdout)
        )
        total = None
        if show_progress and not streamed:
            sources = list(sources)  # an estimate of the remaining time needs the number of scans
            total = len(sources)
        if heatmap and batch is None:
            batch = 1  # scans stay in memory until they are drawn, and the heatmap takes most of the time
        predictions = classifier.predict_batches(
            sources,
            batch_size=batch,
            explain=heatmap is not None,
            keep_pixels=heatmap is not None,
            max_wait=_MAX_WAIT_S if streamed else None,
        )
        if heatmap:
            from mri_edge.inference.heatmap.files import draw_each

            predictions = draw_each(predictions, heatmap, score)
        identification = new_identification() if identified else None
        counter = Counter(_with_dicom(predictions, dicom, identification))
        results = track(counter, "heatmaps" if heatmap else "predict", total) if show_progress else counter
        if journal:
            for result in results:
                journal.write(result)
            if journal.skipped:
                have = "scan has" if journal.skipped == 1 else "scans have"
                notify(f"{journal.skipped} {have} a result already{left_out(heatmap, dicom)}")
        else:
            for line in FORMS[output_form(form, identified)](results, classifier):
                print_line(line, form, flush=streamed or counter.results % (batch or classifier.batch_size) == 0)
            flush_stdout()  # flush here, where a full disk or a closed pipe is still reported with its exit code
        if heatmap and counter.heatmaps:
            count = f"{counter.heatmaps} {'heatmap' if counter.heatmaps == 1 else 'heatmaps'}"
            notify(f"{count} written to {heatmap}{os.sep}")
        if dicom:
            dicom.report()
    return 1 if counter.failed or (dicom and dicom.failed) or (identification and identification.failed) else 0


def left_out(heatmap: Path | None, dicom: DicomOutput | None) -> str:
    """Return the end of the message about earlier results: which of the requested files they do not get."""
    files = ["heatmap"] * (heatmap is not None) + ["DICOM file"] * (dicom is not None)
    return f". Earlier results get no {' or '.join(files)}: name a new file in --resume to make them" if files else ""


def new_identification() -> Identification:
    """Return what adds the identifiers of the patient to results. Most runs need not import it."""
    from .identified import Identification

    return Identification()


def _with_dicom(
    results: Iterable[Prediction | Failure], dicom: DicomOutput | None, identification: Identification | None
) -> Iterable[Prediction | Failure]:
    """Return the results after their DICOM objects are written, and with what identifies the patient if wanted."""
    if dicom:
        results = dicom.each(results)
    if identification:
        results = identification.slices(results)
    return results


def output_form(form: str | None, identified: bool) -> str:
    """Return the key of the form for results. Only CSV must know beforehand whether they identify patients."""
    return "identified csv" if identified and form == "csv" else form or "table"


@contextmanager
def explain_how_to_continue(resume: Path | None) -> Iterator[None]:
    """Turn Ctrl-C into an error that says how the next run can continue."""
    try:
        yield
    except KeyboardInterrupt as error:
        advice = (
            "Run the same command again to continue"
            if resume
            else "With --resume FILE the next run can continue from there"
        )
        raise click.Abort(advice) from error


def print_line(line: str, form: str | None, *, flush: bool) -> None:
    """Print one line of results in a form."""
    if form is None:
        click.echo(line)
    elif form == "csv" and at_terminal(sys.stdout):  # a name with control codes could act on the terminal
        print(printable(line), flush=True)
    else:  # not click.echo, which would remove color codes from a name
        print(line, flush=flush)


def _journal(path: Path, classifier: Classifier) -> Journal:
    from mri_edge.inference.journal import Journal

    return Journal(path, classifier.bundle.manifest.title, classifier.artifact, classifier.reading.window_name)


def notify(message: str) -> None:
    """Print a line about the run on stderr."""
    flush_stdout()  # so that both streams stay in order on one terminal
    click.echo(f"mri-edge: {printable(message)}", err=True)


def flush_stdout() -> None:
    """Write what is buffered."""
    if sys.stdout is not None:
        sys.stdout.flush()


class Counter:
    """Yields the results, counts them, and reports each failure on stderr."""

    def __init__(self, results: Iterable[Prediction | Failure]) -> None:
        self.results = 0
        self.failed = 0
        self.heatmaps = 0
        self._incoming = results

    def __iter__(self) -> Iterator[Prediction | Failure]:
        for result in self._incoming:
            self.results += 1
            if isinstance(result, Failure):
                self.failed += 1
                notify(str(result.error))
            elif result.heatmap_file is not None:
                self.heatmaps += 1
            yield result
