"""``mri-edge predict``: classify scans and print a table, JSON lines or CSV."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

import click

from mri_edge.bundles.bundle import Bundle
from mri_edge.device.native import paused_collection, return_freed_memory
from mri_edge.errors import UsageError
from mri_edge.inference.loading import PendingModel
from mri_edge.inference.selection import RunOptions

from .options import BATCH, REQUIRE_SIGNATURE, is_on_command_line, model_options, reading_options

EXAMPLES = """\b
Examples:
  mri-edge predict scan.jpg
  mri-edge predict scans/ --recursive --csv > results.csv
  mri-edge predict 'scans/*.png' --json | jq .label
  mri-edge predict scan.jpg --heatmap why/
  mri-edge predict archive/ -r --resume results.jsonl
  mri-edge predict IM0001 --window 500,1000
  mri-edge predict study/ -r --by series
  mri-edge predict study/ -r --by series --dicom-out results/ --as sr,sc
  find . -name '*.jpg' | mri-edge predict - --json
  mri-edge predict scan.jpg --model my-bundle --engine litert
"""


@click.command(epilog=EXAMPLES)
@click.argument("scans", nargs=-1, required=True, metavar="SCAN...")
@click.option("--json", "form", flag_value="json", help="Print one JSON object per line.")
@click.option("--csv", "form", flag_value="csv", help="Print CSV with a header.")
@click.option(
    "--by",
    type=click.Choice(("slice", "series", "study")),
    default="slice",
    show_default=True,
    help="What gets an answer. For series and studies all headers are read first; slices are sorted by their position, "
    "and every slice keeps its own answer.",
)
@click.option(
    "--plane",
    type=click.Choice(("axial", "any")),
    default="axial",
    show_default=True,
    help="With --by series or study: which series are classified. The others are reported as skipped.",
)
@click.option("-r", "--recursive", is_flag=True, help="Classify the scans in subfolders too.")
@click.option(
    "--resume",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Append JSON lines to FILE; scans that have a result there are skipped, so that a new run continues after a "
    "kill. Failed scans are tried again.",
)
@click.option(
    "--heatmap",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write a PNG for each scan: beside the scan, the regions that support the positive label or, of more than two "
    "labels, the answer. Takes about 140 runs of the model for each scan. With --by series: for up to 3 slices of the "
    "series, and the curve of the probability along it.",
)
@BATCH
@click.option(
    "--dicom-out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write DICOM objects for positive results, for the archive from which the scans come. They contain the name "
    "and the identifiers of the patient. Needs the extra 'dicom-out'.",
)
@click.option(
    "--as",
    "kinds",
    default="sr",
    show_default=True,
    metavar="KINDS",
    help="With --dicom-out: sr, a structured report; sc, heatmaps of up to 3 slices as Secondary Captures; or sr,sc.",
)
@click.option(
    "--dicom-negatives",
    is_flag=True,
    help="With --dicom-out: also report 'Absent' for scans that are not positive. Readers may take it for a finding.",
)
@click.option(
    "--with-identifiers",
    is_flag=True,
    help="Add the patient's name, ID and birth date and the accession number of DICOM files to JSON and CSV.",
)
@REQUIRE_SIGNATURE
@model_options
@reading_options
def predict(
    scans: tuple[str, ...],
    form: str | None,
    by: Literal["slice", "series", "study"],
    plane: Literal["axial", "any"],
    recursive: bool,
    resume: Path | None,
    heatmap: Path | None,
    dicom_out: Path | None,
    kinds: str,
    dicom_negatives: bool,
    with_identifiers: bool,
    batch: int | None,
    signed_by: str | None,
    model: str,
    run: RunOptions,
) -> int:
    """Classify scans with an exported model.

    A SCAN is a file, a folder, a pattern, or - for paths on standard input, which are
    classified as they arrive.
    Results come in input order. A series or a study is answered by a window of
    neighboring slices, never by its highest slice alone. A scan that cannot be read is reported, the others are
    still classified, and the exit code is 1.

    Research use only: not a medical device.
    """
    if resume and form:
        raise UsageError("--resume writes JSON lines to its file", "Leave out --json and --csv")
    if by == "slice" and is_on_command_line("plane"):
        raise UsageError("--plane chooses among series", "Add --by series or --by study")
    if dicom_out is None and (dicom_negatives or is_on_command_line("kinds")):
        raise UsageError("--as and --dicom-negatives say what --dicom-out writes", "Add --dicom-out DIR")
    if with_identifiers and not (form or resume):
        raise UsageError("--with-identifiers adds to JSON and CSV", "Add --json, --csv or --resume FILE")
    with return_freed_memory(), paused_collection():
        single = len(scans) == 1 and os.path.isfile(scans[0])
        run = replace(run, workload="single" if single else "many")
        pending = PendingModel(Bundle.open(model, signed_by=signed_by), run)
        # These imports take place while the model is opened in other threads.
        from mri_edge.inference.classifier import Classifier
        from mri_edge.scans.readers import reader_by_suffix

        from .scans.classify import classify

        reader_by_suffix(scans[0])  # imports the reader of the first scan, and Pillow
        classifier = Classifier.from_pending(pending)
    with classifier:
        dicom = None
        if dicom_out is not None:
            from .scans.dicom_output import DicomOutput, parse_kinds

            dicom = DicomOutput(classifier, dicom_out, parse_kinds(kinds), negatives=dicom_negatives)
        if by != "slice":
            from .scans.classify_series import classify_series

            return classify_series(
                classifier,
                scans,
                by=by,
                plane=plane,
                form=form,
                recursive=recursive,
                resume=resume,
                heatmap=heatmap,
                dicom=dicom,
                identified=with_identifiers,
                batch=batch,
            )
        return classify(
            classifier,
            scans,
            form=form,
            recursive=recursive,
            resume=resume,
            heatmap=heatmap,
            dicom=dicom,
            identified=with_identifiers,
            batch=batch,
        )
