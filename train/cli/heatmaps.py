"""``mri-edge evaluate --heatmaps``: score the heatmaps of an artifact on lesions drawn in healthy scans."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mri_edge.bundles.bundle import Bundle
from mri_edge.commands.progress import track

from .publish import prepare_folder, publish

if TYPE_CHECKING:
    from mri_edge.inference.selection import RunOptions
    from mri_edge.train.evaluation.evaluate import Role


def score_heatmaps(
    bundle: Bundle,
    data: Path,
    out: Path | None,
    *,
    role: Role | None,
    labels: str | None,
    limit: int | None,
    run: RunOptions,
    as_json: bool,
    record_it: bool,
) -> int:
    """Score the heatmaps, print and write the figures, and return the exit code: 1 if a scan cannot be read.

    ``record_it`` stores the figures in the bundle. Raises what ``evaluate_heatmaps`` and ``record_score`` do.
    """
    from mri_edge.train.evaluation.heatmap_record import check_recordable, record_score
    from mri_edge.train.evaluation.heatmaps import SCANS, evaluate_heatmaps
    from mri_edge.train.reports.heatmap_report import heatmap_page, print_heatmaps

    if record_it:
        check_recordable(bundle)
    prepare_folder(out)
    evaluation = evaluate_heatmaps(
        bundle,
        data,
        run=run,
        role=role,
        labels=labels,
        limit=SCANS if limit is None else limit,
        track=track,
        say=lambda text: click.echo(text, err=True),
    )
    record = evaluation.record
    if record_it:
        record_score(bundle, record)
    code = publish(
        record,
        out,
        "heatmaps",
        page=lambda: heatmap_page(record, evaluation.cases),
        print_tables=print_heatmaps,
        as_json=as_json,
    )
    if record_it:
        click.echo(f"stored in {bundle.folder}", err=True)
    return code
