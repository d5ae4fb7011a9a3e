"""``mri-edge watch``: a folder in which scans arrive; a JSON result for each, and the scan moved."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from mri_edge.bundles.bundle import Bundle
from mri_edge.errors import DISK_ERRORS, UsageError
from mri_edge.inference.classifier import Classifier
from mri_edge.inference.prediction import stdout_json
from mri_edge.services.systemd import notify
from mri_edge.services.watch.outbox import Outbox, Record
from mri_edge.services.watch.watch import Watch
from mri_edge.storage.atomic import discard_stdout

from .options import REQUIRE_SIGNATURE, model_options

EXAMPLES = """\b
Examples:
  mri-edge watch incoming/ --out classified/
  mri-edge watch incoming/ --out classified/ --heatmap --json >> journal.jsonl
  mri-edge watch incoming/ --out classified/ --once
"""


@click.command(epilog=EXAMPLES)
@click.argument("folder", metavar="IN", type=click.Path(path_type=Path))
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of results/, done/, failed/ and heatmaps/; it is made.",
)
@click.option("--heatmap", is_flag=True, help="Write DIR/heatmaps/SCAN.png too (Grad-CAM).")
@click.option("--json", "as_lines", is_flag=True, help="Results on standard output as one JSON object a line.")
@click.option("--once", is_flag=True, help="Take what is there, wait for what is still being written, and end.")
@click.option(
    "--every",
    type=click.FloatRange(min=0.05),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How often to look into IN.",
)
@click.option(
    "--settle",
    type=click.FloatRange(min=0),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="A scan is whole when its size and time were the same for so long.",
)
@REQUIRE_SIGNATURE
@model_options
def watch(
    folder: Path,
    out: Path,
    heatmap: bool,
    as_lines: bool,
    once: bool,
    every: float,
    settle: float,
    signed_by: str | None,
    model: str,
    artefact: str | None,
    engine: str | None,
    provider: str,
    threads: int | None,
    allow_fallback: bool,
) -> int:
    """Classify each scan that arrives in a folder, as a service does.

    A scan that is written to its end is classified, its result is written to DIR/results/SCAN.json, and it is
    moved to DIR/done/, or to DIR/failed/ if it cannot be read. Names that begin with a dot or end in .part or
    .tmp are passed over, so a sender may write under such a name and rename. Subfolders are left alone.

    It may be killed at any moment: no scan is lost and none gets two results. While a disk is full, read-only or
    missing, at its start too, it waits and scans stay in IN; --once ends with 6 then. The same scan again gets no
    second result: for results of another model, name another DIR. A second watch on IN or DIR is refused.

    SIGTERM ends it after the scan at hand with exit code 0, Ctrl-C with 130; --once ends with 1 if a scan failed.

    Research use only: not a medical device.
    """
    outbox = Outbox(out)
    _check(folder, outbox, once=once)
    with ExitStack() as stack:
        classifier = stack.enter_context(
            Classifier.load(
                Bundle.open(model, signed_by=signed_by),
                artefact=artefact,
                engine=engine,
                provider=provider,
                threads=threads,
                many=False,
                allow_fallback=allow_fallback,
            )
        )
        watch = Watch(classifier, folder, outbox, settle_s=settle, heatmap=heatmap, tell=_tell)
        received = stack.enter_context(_stopped_by_signals(watch))
        say = stack.enter_context(_output())
        watch.check_model()
        notify("READY=1")  # also where it will wait for a disk: systemd would end a start that takes long
        for record in watch.records(every_s=every, once=once):
            say(stdout_json(record) if as_lines else _line(record))
        notify("STOPPING=1")
        if signal.SIGINT in received:
            raise click.Abort
        if received:
            _tell("stopped")
    return 1 if once and watch.failed else 0


def _check(folder: Path, outbox: Outbox, *, once: bool) -> None:
    """Raise UsageError for what no disk that comes back will mend."""
    if once and not os.path.isdir(folder):  # else it is waited for: its disk or share may not be there yet
        raise UsageError(f"{folder}: no such folder", "Name the folder in which scans arrive")
    for path in (folder, outbox.folder):
        if os.path.exists(path) and not os.path.isdir(path):
            raise UsageError(f"{path}: is a file, not a folder", "Name a folder")
    real = os.path.realpath(folder)
    for own in (outbox.results, outbox.heatmaps, outbox.done, outbox.failed):
        if real == os.path.realpath(own):
            raise UsageError(f"{folder}: this is where --out {outbox.folder} puts its files", "Name two folders")


@contextmanager
def _stopped_by_signals(watch: Watch) -> Iterator[list[int]]:
    """The first SIGTERM or Ctrl-C ends the watch in order; a second one ends the program as ever."""
    received: list[int] = []

    def stop(number: int, frame: object) -> None:
        received.append(number)
        watch.stop()
        for one, handler in before.items():
            signal.signal(one, handler)

    before = {one: signal.signal(one, stop) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


@contextmanager
def _output() -> Iterator[Callable[[str], None]]:
    """What writes a line on standard output; while its disk is full lines may be lost, for the files count."""
    full = False

    def say(line: str) -> None:
        nonlocal full
        try:
            click.echo(line)
            full = False
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            if not full:
                full = True
                _tell(f"cannot write the output ({error.strerror}): lines of it may be lost, the results are in files")

    try:
        yield say
    finally:
        if full:
            discard_stdout()


def _line(record: Record) -> str:
    if "error" in record:
        return _plain(f"{record['moved_to']}  {record['error']}")
    positive = record["positive"]
    words = f"{record['moved_to']}  {record['label']}  p({positive}) = {record['probabilities'][positive]:.3f}"
    return _plain("  ".join([words, *(f"warning: {warning['message']}" for warning in record["warnings"])]))


def _plain(text: str) -> str:
    """A name may hold line feeds or be no UTF-8: it must neither forge a line nor end the program."""
    return text if text.isprintable() else ascii(text)[1:-1]


def _tell(words: str) -> None:
    try:
        click.echo(f"mri-edge: {_plain(words)}", err=True)
    except OSError as error:
        if error.errno not in DISK_ERRORS:  # a log on a full disk ends no watch
            raise
