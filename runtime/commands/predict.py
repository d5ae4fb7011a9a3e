"""``mri-edge predict``: scans in; a table, JSON lines or CSV out."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import click

from ..bundle import Bundle
from ..classifier import Classifier
from ..errors import UsageError, printable
from ..inputs import expand
from ..journal import Journal
from ..native import memory_given_back
from ..prediction import Failure, Prediction
from ..progress import at_terminal, track
from .forms import FORMS
from .options import REQUIRE_SIGNATURE, model_options

EXAMPLES = """\b
Examples:
  mri-edge predict scan.jpg
  mri-edge predict scans/ --recursive --csv > results.csv
  mri-edge predict 'scans/*.png' --json | jq .label
  mri-edge predict scan.jpg --heatmap why/
  mri-edge predict archive/ -r --resume results.jsonl
  find . -name '*.jpg' | mri-edge predict - --json
  mri-edge predict scan.jpg --model my-bundle --engine litert
"""


@click.command(epilog=EXAMPLES)
@click.argument("scans", nargs=-1, required=True, metavar="SCAN...")
@click.option("--json", "form", flag_value="json", help="One JSON object a line.")
@click.option("--csv", "form", flag_value="csv", help="CSV with a header.")
@click.option("-r", "--recursive", is_flag=True, help="Take the pictures of subfolders too.")
@click.option(
    "--resume",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Append JSON lines to FILE; scans that have a line are skipped, so it goes on after a kill.",
)
@click.option(
    "--heatmap",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write for each scan a PNG that shows what spoke for the positive label (Grad-CAM).",
)
@click.option(
    "--batch",
    type=click.IntRange(1, 1024),
    envvar="MRI_EDGE_BATCH",
    show_envvar=True,
    help="Scans in a run. Default: as tuned, else 8.",
)
@REQUIRE_SIGNATURE
@model_options
def predict(
    scans: tuple[str, ...],
    form: str | None,
    recursive: bool,
    resume: Path | None,
    heatmap: Path | None,
    batch: int | None,
    signed_by: str | None,
    model: str,
    artefact: str | None,
    engine: str | None,
    provider: str,
    threads: int | None,
    allow_fallback: bool,
) -> int:
    """Classify scans with an exported model.

    A SCAN is a file, a folder, a pattern, or - for a list of them on standard input.
    Results come in input order. A scan that cannot be read is reported, the others are
    classified all the same, and the exit code is 1.

    Research use only: not a medical device.
    """
    if resume and form:
        raise UsageError("--resume writes JSON lines to its file", "Leave out --json and --csv")
    with ExitStack() as stack:
        with memory_given_back():
            classifier = Classifier.load(
                Bundle.open(model, signed_by=signed_by),
                artefact=artefact,
                engine=engine,
                provider=provider,
                threads=threads,
                many=len(scans) > 1 or not Path(scans[0]).is_file(),
                allow_fallback=allow_fallback,
            )
        stack.enter_context(classifier)
        sources: Iterable[str | Failure] = expand(scans, recursive=recursive)
        journal = stack.enter_context(Journal(resume)) if resume else None
        if journal:
            sources = journal.remaining(sources)
        total = None
        if at_terminal(sys.stderr) and (journal or not at_terminal(sys.stdout)):
            sources = list(sources)  # a bar needs their number; elsewhere they stay a stream
            total = len(sources)
        if heatmap and batch is None:
            batch = 1  # whole scans are kept until they are drawn, and drawing is what takes the time
        predictions = classifier.predict_batches(sources, batch_size=batch, keep_pixels=heatmap is not None)
        if heatmap:
            from ..overlay import draw_each

            predictions = draw_each(predictions, classifier, heatmap)
        report = _Report(predictions)
        results = report if total is None else track(report, "predict", total)
        if journal:
            for result in results:
                journal.write(result)
        else:
            for line in FORMS[form or "table"](results, classifier):
                if form:
                    print(line, flush=True)  # as it is: click would take a colour's code out of a name
                else:
                    click.echo(line)
    return 1 if report.failed else 0


class _Report:
    """Results on their way through; says each failure on stderr as it comes by, and counts it."""

    def __init__(self, results: Iterable[Prediction | Failure]) -> None:
        self.failed = 0
        self._results = results

    def __iter__(self) -> Iterator[Prediction | Failure]:
        for result in self._results:
            if isinstance(result, Failure):
                self.failed += 1
                if sys.stdout is not None:
                    sys.stdout.flush()  # so that both streams, on one terminal, stay in order
                click.echo(f"mri-edge: {printable(str(result.error))}", err=True)
            yield result
