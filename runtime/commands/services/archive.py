"""``mri-edge archive``: classify millions of scans with Ray Data, on this machine or on a cluster."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Literal

import click

from mri_edge.commands.options import BATCH, REQUIRE_SIGNATURE, is_on_command_line, model_options, reading_options
from mri_edge.commands.output import report
from mri_edge.errors import UsageError
from mri_edge.inference.selection import RunOptions

EXAMPLES = """\b
Examples:
  mri-edge archive /pacs/export --out results/
  mri-edge archive @list.txt studies.zip --out results/ --by series
  mri-edge archive s3://bucket/mr --out /shared/results --address ray://head:10001
"""


@click.command(epilog=EXAMPLES)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    metavar="RESULTS",
    help="Folder for the results, the list of inputs and the summary. All nodes of a cluster must see it under this "
    "path.",
)
@click.option(
    "--by",
    type=click.Choice(("slice", "series")),
    default="slice",
    show_default=True,
    help="What gets a row. A series may lie in several folders of a file system, but only in one of an object store.",
)
@click.option(
    "--plane",
    type=click.Choice(("axial", "any")),
    default="axial",
    show_default=True,
    help="With --by series: which series are classified. The others get a row that says why they were skipped.",
)
@click.option(
    "--address",
    metavar="auto|ray://HOST:PORT",
    help="Cluster of Ray. Default: start Ray on this machine, with the cores that this process may use.",
)
@click.option(
    "--heatmap",
    is_flag=True,
    help="Write heatmaps into RESULTS/heatmaps. Takes about 140 runs of the model for each scan or, with --by series, "
    "for 3 slices of each series.",
)
@BATCH
@REQUIRE_SIGNATURE
@model_options
@reading_options
def archive(
    sources: tuple[str, ...],
    out: Path,
    by: Literal["slice", "series"],
    plane: Literal["axial", "any"],
    address: str | None,
    heatmap: bool,
    batch: int | None,
    signed_by: str | None,
    model: str,
    run: RunOptions,
) -> int:
    """Classify an archive of scans into a Parquet data set, on this machine or on a cluster.

    A SOURCE is a folder with its subfolders, a scan, a pattern, a zip or tar file,
    @FILE with a path on each line, - for paths on standard input, or an address such as
    s3://bucket/prefix.

    Run the same command again to continue after a kill: every input gets its rows
    exactly once. Needs the extra 'archive'.

    Research use only: not a medical device.
    """
    if by == "slice" and is_on_command_line("plane"):
        raise UsageError("--plane chooses among series", "Add --by series")
    from mri_edge.services.archive.job import Archive, run_archive

    # Ray's processes and temporary files are removed as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    job = Archive(sources, out, model, run, by, plane, heatmap, batch, address, signed_by)
    try:
        summary = run_archive(job, report)
    except KeyboardInterrupt as error:
        raise click.Abort("Run the same command again to continue") from error
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in summary["failures"].items())
    click.echo(
        f"{out}: inputs {summary['inputs']:,}, rows {summary['rows']:,}, answered {summary['answered']:,}, "
        f"not read {summary['failed']:,}{reasons and f' ({reasons})'}; see {out / 'summary.html'}"
    )
    click.echo(summary["notice"])
    return 1 if summary["failed"] else 0
