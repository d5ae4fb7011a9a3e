"""``mri-edge bench``: measure latency, throughput and memory of every artifact in every engine on this device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mri_edge.bundles.bundle import Bundle
from mri_edge.errors import printable
from mri_edge.inference.prediction import stdout_json

from .options import PROVIDER, REQUIRE_SIGNATURE, bundle_argument, run_options
from .output import table

if TYPE_CHECKING:
    from mri_edge.benchmarking.benchmark import Report, Row, Spread, Stream
    from mri_edge.inference.selection import RunOptions

EXAMPLES = """\b
Examples:
  mri-edge bench
  mri-edge bench my-bundle --profile full --json > bench.json
  mri-edge bench --scans archive/ --engine onnxruntime --threads 1
  mri-edge bench --artifact model.int8.onnx --server 50
"""


@click.command(epilog=EXAMPLES)
@bundle_argument
@REQUIRE_SIGNATURE
@click.option(
    "--profile",
    type=click.Choice(["smoke", "full"]),
    default="smoke",
    show_default=True,
    help="smoke: seconds for each artifact; full: enough queries for the 99th percentile.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with all measurements.")
@click.option("--scans", multiple=True, metavar="PATH", help="Files or folders to measure with. Default: demo scans.")
@click.option(
    "--server",
    "server_ms",
    type=click.FloatRange(0, min_open=True),
    metavar="MS",
    help="Search for the highest rate of random arrivals with a 99th percentile below MS.",
)
@run_options(
    click.option("--artifact", metavar="FILE", help="Measure only this artifact."),
    click.option("--engine", metavar="NAME", help="Measure only this engine."),
    click.option("--threads", type=click.IntRange(min=1), help="Default: the cores that this process may use."),
    PROVIDER,
)
def bench(
    model: str,
    signed_by: str | None,
    profile: str,
    as_json: bool,
    scans: tuple[str, ...],
    server_ms: float | None,
    run: RunOptions,
) -> None:
    """Measure every artifact in every engine, each in its own process.

    Runs the SingleStream and Offline scenarios of the MLPerf inference rules, once for the model alone
    and once from file to answer. A percentile is an upper bound with 99% confidence, or n/a if there
    are too few queries. Without BUNDLE: the embedded model. This is not an MLPerf result.
    """
    from mri_edge.benchmarking.benchmark import measure, scans_for

    from .progress import track

    bundle = Bundle.open(model, signed_by=signed_by)
    report = measure(
        bundle,
        scans_for(bundle, scans, lambda message: click.echo(f"mri-edge: {printable(message)}", err=True)),
        profile,
        artifact=run.artifact,
        engine=run.engine,
        provider=run.provider,
        threads=run.threads,
        server_ms=server_ms,
        signed_by=signed_by,
        track=lambda items, label: track(items, label, len(items)),
    )
    if as_json:
        click.echo(stdout_json(report.to_dict(), indent=1))
        return
    for line in _lines(report):
        click.echo(line)


_MODEL_COLUMNS = (
    "artifact",
    "engine",
    "MB",
    "load",
    "first",
    "p50",
    "p90",
    "p99",
    "images/s",
    "MiB",
    "parity",
    "provider",
)
_FILE_COLUMNS = ("artifact", "engine", "p50", "p90", "p99", "images/s", "bound by", "decode", "resize", "infer")


def _lines(report: Report) -> list[str]:
    machine, measured = report.machine, [row for row in report.rows if row.model]
    lines = [
        click.style(f"{report.bundle} on {machine.get('board') or machine['cpu']}", bold=True),
        f"{measured[0].threads} threads, {report.scans} scans, {report.plan.rounds} rounds, batches of {report.batch} "
        f"in Offline; times in ms",
        "",
        click.style("model only", bold=True),
        *table([_MODEL_COLUMNS, *map(_model_cells, measured)], right=range(2, 10)),
        "",
        click.style("file to answer", bold=True),
    ]
    columns = [*_FILE_COLUMNS, *([f"queries/s under {report.server_ms:g} ms"] if report.server_ms else [])]
    rows = [columns, *(_file_cells(row, report.server_ms) for row in measured)]
    lines += table(rows, right=[i for i in range(len(columns)) if i not in (0, 1)])
    lines.append("")
    lines += [
        click.style(f"{row.artifact} in {row.engine} did not run: {printable(row.problem)}", fg="yellow")
        for row in report.rows
        if row.problem
    ]
    disturbed = [*report.marks, *(f"{row.artifact} in {row.engine}: {mark}" for row in measured for mark in row.marks)]
    lines += [click.style(f"DISTURBED  {mark}", fg="red") for mark in disturbed]
    lines.append(
        click.style(
            "p50, p90, p99: not exceeded with 99% confidence; n/a: too few queries (11, 64, 662), see --profile full. "
            "Not an MLPerf result. Research use only: not a medical device.",
            dim=True,
        )
    )
    return lines


def _model_cells(row: Row) -> list[str]:
    return [
        row.artifact,
        row.engine,
        f"{row.size_bytes / 1e6:.2f}",
        _figure(row.load_ms),
        _figure(row.first_ms),
        *_bounds(row.model),
        _figure(row.model_rate),
        _figure(row.peak_mib),
        row.parity or "not judged",
        row.provider or "",
    ]


def _file_cells(row: Row, server_ms: float | None) -> list[str]:
    stages = [f"{row.stages_ms[stage]:.2f}" for stage in ("decode", "resize", "infer")]
    server = [_figure(row.server_rate) if row.server_rate else "none"] if server_ms else []
    return [row.artifact, row.engine, *_bounds(row.file), _figure(row.file_rate), row.bound_by or "", *stages, *server]


def _bounds(stream: Stream | None) -> list[str]:
    return ["n/a" if value is None else f"{value:.2f}" for value in (stream.bounds.values() if stream else ())]


def _figure(spread: Spread | None) -> str:
    return "n/a" if spread is None else f"{spread.value:.0f}" if spread.value >= 10 else f"{spread.value:.2f}"
