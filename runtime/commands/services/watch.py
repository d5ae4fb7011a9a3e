"""``mri-edge watch``: classify the scans that arrive in a folder, write a JSON result for each and move the scan."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import click

from mri_edge.bundles.bundle import Bundle
from mri_edge.commands.options import REQUIRE_SIGNATURE, model_options, reading_options
from mri_edge.commands.output import report
from mri_edge.commands.usage import DAY_S, NumberRange
from mri_edge.errors import DISK_ERRORS, UsageError, printable
from mri_edge.inference.classifier import Classifier
from mri_edge.inference.prediction import displayed_label, frame_name, stdout_json
from mri_edge.inference.selection import RunOptions
from mri_edge.services.model_check import check_model
from mri_edge.services.stopping import stopped_by_signals
from mri_edge.services.systemd import notify
from mri_edge.services.watch.outbox import Outbox, Record
from mri_edge.services.watch.watch import Watch
from mri_edge.storage.atomic import discard_stdout

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
    help="Folder for results/, done/, failed/ and heatmaps/, created if missing.",
)
@click.option("--heatmap", is_flag=True, help="Also write DIR/heatmaps/SCAN.png, as predict --heatmap does.")
@click.option("--json", "as_lines", is_flag=True, help="Print the results as JSON lines.")
@click.option(
    "--once",
    is_flag=True,
    help="Process the scans that are there, wait for files that are still being written, then exit.",
)
@click.option(
    "--every",
    type=NumberRange(0.05, DAY_S),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How often to check IN.",
)
@click.option(
    "--settle",
    type=NumberRange(0, DAY_S),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="A scan is complete when its size and time have not changed for this long.",
)
@REQUIRE_SIGNATURE
@model_options
@reading_options
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
    run: RunOptions,
) -> int:
    """Classify each scan that arrives in a folder.

    A scan that has arrived completely is classified, its result is written to DIR/results/SCAN.json, and it is
    moved to DIR/done/, or to DIR/failed/ if it cannot be read. Names that begin with a dot, or end in .part,
    .partial, .tmp, .temp, .crdownload, .filepart, .swp or ~ are ignored, so a sender may write under such a name and
    rename. A file that no reader recognizes stays in IN, with a message. Subfolders are ignored.

    The program may be killed at any moment: no scan is lost and none gets two results. While a disk is full,
    read-only or missing, even at the start, it waits and scans stay in IN; --once exits with 6 instead, or with 2 if
    IN is missing. The same scan under the same name gets no second result: for results of another model, use another
    DIR. A second watch on IN or DIR is refused.

    SIGTERM ends the watch after the current scan, or the current frame of a volume, with exit code 0, Ctrl-C with 130;
    --once exits with 1 if a scan failed.

    Research use only: not a medical device.
    """
    outbox = Outbox(out)
    _check_folders(folder, outbox, once=once)
    with ExitStack() as stack:
        bundle = Bundle.open(model, signed_by=signed_by)
        classifier = stack.enter_context(Classifier.load_with(replace(run, workload="single"), bundle))
        watch = Watch(classifier, folder, outbox, settle_s=settle, heatmap=heatmap, report=report)
        received = stack.enter_context(stopped_by_signals(watch.stop))
        write_line = stack.enter_context(_output())
        check_model(classifier)
        notify("READY=1")  # before it waits for a disk, because systemd stops a service that takes long to start
        for record in watch.records(every_s=every, once=once):
            write_line(stdout_json(record) if as_lines else _line(record))
        notify("STOPPING=1")
        if signal.SIGINT in received:
            raise click.Abort
        if received:
            report("stopped")
    return 1 if once and watch.failed else 0


def _check_folders(folder: Path, outbox: Outbox, *, once: bool) -> None:
    """Raise UsageError for problems that waiting for a disk cannot solve."""
    if once and not os.path.isdir(folder):  # without --once watch waits: the disk or share may not be mounted yet
        raise UsageError(f"{folder}: no such folder", "Name the folder in which scans arrive")
    for path in (folder, outbox.folder):
        if os.path.exists(path) and not os.path.isdir(path):
            raise UsageError(f"{path}: is a file, not a folder", "Name a folder")
    real = os.path.realpath(folder)
    for subfolder in (outbox.results, outbox.heatmaps, outbox.done, outbox.failed):
        if real == os.path.realpath(subfolder):
            raise UsageError(f"{folder}: --out {outbox.folder} writes its files there", "Name two different folders")


@contextmanager
def _output() -> Iterator[Callable[[str], None]]:
    """Yield a function that writes a line to standard output. Lines are dropped while its disk is full."""
    full = False

    def write_line(line: str) -> None:
        nonlocal full
        try:
            click.echo(line)
            full = False
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            if not full:
                full = True
                report(
                    f"cannot write the output ({error.strerror}): lines may be lost, but the result files are complete"
                )

    try:
        yield write_line
    finally:
        if full:
            discard_stdout()


def _line(record: Record) -> str:
    if "error" in record:
        return printable(f"{record['moved_to']}  {record['error']}")
    probabilities = record["probabilities"]
    shown = displayed_label(record["label"], record["positive"], probabilities)
    name = frame_name(record["moved_to"], record.get("index", 0), record.get("frames", 1))
    answer = f"{name}  {record['label']}  p({shown}) = {probabilities[shown]:.3f}"
    return printable("  ".join([answer, *(f"warning: {warning['message']}" for warning in record["warnings"])]))
