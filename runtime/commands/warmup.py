"""``mri-edge warmup``: open and run a model before the first scan, so that slow preparations are done by then."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from time import perf_counter
from typing import TYPE_CHECKING

import click

from .options import REQUIRE_SIGNATURE, bundle_argument, run_options
from .progress import Bar, redraws

if TYPE_CHECKING:
    from mri_edge.inference.selection import RunOptions

EXAMPLES = """\b
Examples:
  mri-edge warmup bundles/mine --provider tensorrt
  mri-edge warmup --provider cuda --batch 1 --batch 32
"""


@click.command(epilog=EXAMPLES)
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(1, 1024),
    multiple=True,
    help="Batch size to run. Default: 1 and the tuned size.",
)
@bundle_argument
@REQUIRE_SIGNATURE
@run_options()
def warmup(
    batches: tuple[int, ...],
    model: str,
    signed_by: str | None,
    run: RunOptions,
) -> None:
    """Build and cache what a provider needs before the first scan.

    TensorRT compiles a model for minutes. The result is cached by the model's hash, the GPU and the
    library's version, and predict uses it. With other providers this shows how long opening and the
    first runs take.
    """
    from mri_edge.benchmarking.trial import noise
    from mri_edge.inference.classifier import Classifier

    with _clock("open"):
        classifier = Classifier.load_with(run, model, require_signature=signed_by)
    with classifier:
        opened = classifier.engine
        click.echo(f"{classifier.artifact.file} in {opened.name} on {opened.provider}", err=True)
        for batch in batches or sorted({1, classifier.batch_size}):
            scans = noise(opened.input, batch)
            for name in ("first run", "next run"):
                with _clock(f"{name}, batch {batch}"):
                    opened.run(scans)


@contextmanager
def _clock(name: str) -> Iterator[None]:
    """Show the step on a terminal's stderr while the block runs, then print its time on stdout."""
    start = perf_counter()
    with Bar(name) if redraws(sys.stderr) else nullcontext():
        yield
    click.echo(f"{name:<20}  {(perf_counter() - start) * 1e3:>10.1f} ms")
