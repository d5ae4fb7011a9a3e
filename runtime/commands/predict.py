"""``mri-edge predict``: scans in; a table, JSON lines or CSV out."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

import click

from ..classifier import DEFAULT_BATCH, Classifier
from ..inputs import expand
from ..prediction import Failure, Prediction
from .forms import FORMS
from .options import model_options

EXAMPLES = """\b
Examples:
  mri-edge predict scan.jpg
  mri-edge predict scans/ --recursive --csv > results.csv
  mri-edge predict 'scans/*.png' --json | jq .label
  find . -name '*.jpg' | mri-edge predict - --json
  mri-edge predict scan.jpg --model my-bundle --engine litert
"""


@click.command(epilog=EXAMPLES)
@click.argument("scans", nargs=-1, required=True, metavar="SCAN...")
@click.option("--json", "form", flag_value="json", help="One JSON object a line.")
@click.option("--csv", "form", flag_value="csv", help="CSV with a header.")
@click.option("-r", "--recursive", is_flag=True, help="Take the pictures of subfolders too.")
@click.option("--batch", type=click.IntRange(1, 1024), default=DEFAULT_BATCH, show_default=True, help="Scans in a run.")
@model_options
def predict(
    scans: tuple[str, ...],
    form: str | None,
    recursive: bool,
    batch: int,
    model: str,
    artefact: str | None,
    engine: str | None,
    provider: str,
    threads: int | None,
) -> int:
    """Classify scans with an exported model.

    A SCAN is a file, a folder, a pattern, or - for a list of them on standard input.
    Results come in input order. A scan that cannot be read is reported, the others are
    classified all the same, and the exit code is 1.

    Research use only: not a medical device.
    """
    failures: list[Failure] = []
    with Classifier.load(model, artefact=artefact, engine=engine, provider=provider, threads=threads) as classifier:
        results = classifier.predict_batches(expand(scans, recursive=recursive), batch_size=batch)
        for line in FORMS[form or "table"](_report(results, failures), classifier):
            click.echo(line)
    return 1 if failures else 0


def _report(results: Iterable[Prediction | Failure], failures: list[Failure]) -> Iterator[Prediction | Failure]:
    """Say each failure on stderr as it comes by, and count it."""
    for result in results:
        if isinstance(result, Failure):
            failures.append(result)
            sys.stdout.flush()  # so that both streams, on one terminal, stay in order
            click.echo(f"mri-edge: {result.error}", err=True)
        yield result
