"""``mri-edge bench``: measure speed, memory and energy of every artifact in every engine, and compare two runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.decode import to_plain
from mri_edge.errors import UsageError, printable
from mri_edge.inference.prediction import stdout_json
from mri_edge.storage.atomic import atomic_write, check_can_write

from .options import PROVIDER, REQUIRE_SIGNATURE, bundle_argument, run_options
from .output import table
from .usage import NumberRange

if TYPE_CHECKING:
    from mri_edge.benchmarking.benchmark import Report, Row, Spread, Stream
    from mri_edge.benchmarking.comparison import Comparison
    from mri_edge.inference.selection import RunOptions

EXAMPLES = """\b
Examples:
  mri-edge bench
  mri-edge bench my-bundle --profile full --json > bench.json
  mri-edge bench --scans archive/ --engine onnxruntime --threads 1
  mri-edge bench --artifact model.int8.onnx --server 50
  mri-edge bench --compare bench.json --fail-above 5%
"""

_FAIL_ABOVE = 10.0


def _percent(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Convert ``10%`` or ``10`` to 10.0."""
    if value is None:
        return None
    try:
        number = float(value.removesuffix("%"))
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise click.BadParameter(f"{value!r} is not a percentage, such as 10%", ctx, param)
    return number


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
@click.option(
    "--scans",
    multiple=True,
    metavar="PATH",
    help="Files or folders to measure with; of more than 256 scans, the first 256. Default: demo scans.",
)
@click.option(
    "--server",
    "server_ms",
    type=NumberRange(0, min_open=True),
    metavar="MS",
    help="Search for the highest rate of random arrivals with a 99th percentile below MS.",
)
@click.option(
    "--compare",
    "earlier",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="OLD.json",
    help="Compare with an earlier output of --json, of this machine with the same options. Exit code 5 if slower.",
)
@click.option(
    "--fail-above",
    callback=_percent,
    metavar="PERCENT",
    help=f"With --compare: how much slower a figure may be. Default: {_FAIL_ABOVE:g}%.",
)
@click.option(
    "--github-action-benchmark",
    "dashboard",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also write FILE for github-action-benchmark, tool customSmallerIsBetter.",
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
    earlier: Path | None,
    fail_above: float | None,
    dashboard: Path | None,
    run: RunOptions,
) -> None:
    """Measure every artifact in every engine, each in its own process.

    Runs the SingleStream and Offline scenarios of the MLPerf inference rules, once for the model alone
    and once from file to answer. A percentile is an upper bound with 99% confidence, or n/a if there
    are too few queries. Without BUNDLE: the embedded model. This is not an MLPerf result.

    --compare fails if all rounds are more than PERCENT slower than all earlier rounds, in SingleStream, Offline
    or Server. What is slower is measured again, up to twice, so that a short disturbance does not fail it.
    """
    from mri_edge.benchmarking.benchmark import measure, scans_for, subjects
    from mri_edge.benchmarking.comparison import check_conditions, compare, read_report

    from .progress import track

    if fail_above is not None and earlier is None:
        raise UsageError("--fail-above needs a benchmark to compare with", "Add --compare OLD.json")
    if dashboard:
        check_can_write(dashboard)
    before = read_report(earlier) if earlier else None
    limit = 1 + (_FAIL_ABOVE if fail_above is None else fail_above) / 100
    bundle = Bundle.open(model, signed_by=signed_by)
    files = scans_for(bundle, scans, lambda message: click.echo(f"mri-edge: {printable(message)}", err=True))
    if before:
        found = subjects(bundle, artifact=run.artifact, engine=run.engine)
        check_conditions(
            before, found, model=bundle.manifest.name, profile=profile, scans=len(files), server_ms=server_ms
        )

    def slower(report: Report) -> set[tuple[str, str]]:
        return (
            {(ratio.artifact, ratio.engine) for ratio in compare(before, report, limit).slower()} if before else set()
        )

    report = measure(
        bundle,
        files,
        profile,
        artifact=run.artifact,
        engine=run.engine,
        provider=run.provider,
        threads=run.threads,
        server_ms=server_ms,
        signed_by=signed_by,
        track=lambda items, label: track(items, label, len(items)),
        repeat=slower,
    )
    comparison = compare(before, report, limit) if before else None
    if as_json:
        compared = {"comparison": to_plain(comparison)} if comparison else {}
        click.echo(stdout_json(report.to_dict() | compared, indent=1))
    else:
        for line in [*_lines(report), *(_comparison_lines(comparison) if comparison else ())]:
            click.echo(line)
    if dashboard:  # after the output, which must not be lost if the disk is full now
        _write_dashboard(dashboard, report)
    if comparison:
        comparison.require_speed()


def _write_dashboard(path: Path, report: Report) -> None:
    from mri_edge.benchmarking.dashboard import entries

    atomic_write(path, json.dumps(entries(report), indent=1) + "\n")


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
        f"threads {measured[0].threads}, {report.scans} scans, {report.plan.rounds} rounds, batches of {report.batch} "
        f"in Offline; times in ms",
        "",
        click.style("model only", bold=True),
        *table(_model_rows(report, measured), right=range(2, 10 + bool(report.energy_source))),
        "",
        click.style("file to answer", bold=True),
    ]
    rows = _file_rows(report, measured)
    lines += table(rows, right=range(2, len(rows[0])))
    if report.energy_source:
        lines.append(click.style(f"mJ: energy for a scan by {report.energy_source}, with idle power", dim=True))
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


def _model_rows(report: Report, measured: list[Row]) -> list[list[str]]:
    rows = [[*_MODEL_COLUMNS]] + [
        [
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
        for row in measured
    ]
    if report.energy_source:
        for cells, energy in zip(rows, ["mJ", *(_millijoules(row.model_joules) for row in measured)], strict=True):
            cells.insert(_MODEL_COLUMNS.index("parity"), energy)
    return rows


def _file_rows(report: Report, measured: list[Row]) -> list[list[str]]:
    rows = [[*_FILE_COLUMNS]] + [
        [
            row.artifact,
            row.engine,
            *_bounds(row.file),
            _figure(row.file_rate),
            row.bound_by or "",
            *(f"{row.stages_ms[stage]:.2f}" for stage in ("decode", "resize", "infer")),
        ]
        for row in measured
    ]
    if report.server_ms:
        rates = [_figure(row.server_rate) if row.server_rate else "none" for row in measured]
        for cells, rate in zip(rows, [f"queries/s under {report.server_ms:g} ms", *rates], strict=True):
            cells.append(rate)
    if report.energy_source:
        for cells, energy in zip(rows, ["mJ", *(_millijoules(row.file_joules) for row in measured)], strict=True):
            cells.append(energy)
    return rows


_VERDICT_COLORS = {"slower": "red", "undecided": "yellow", "ok": "green"}
_COMPARISON_COLUMNS = ("artifact", "engine", "figure", "unit", "before", "now", "ratio", "interval", "verdict")


def _comparison_lines(comparison: Comparison) -> list[str]:
    rows = [_COMPARISON_COLUMNS] + [
        (
            ratio.artifact,
            ratio.engine,
            ratio.figure,
            ratio.unit,
            f"{ratio.before.value:.4g}",
            f"{ratio.now.value:.4g}",
            f"{ratio.ratio.value:.2f}",
            f"{ratio.ratio.low:.2f} to {ratio.ratio.high:.2f}",
            click.style(ratio.verdict, fg=_VERDICT_COLORS[ratio.verdict]) if ratio.verdict else "not judged",
        )
        for ratio in comparison.ratios
    ]
    return [
        "",
        click.style(
            f"compared with {printable(comparison.created)}: above 1 is worse, limit {comparison.limit:.2f}", bold=True
        ),
        *table(rows, right=range(4, 8)),
        *(click.style(printable(lost), fg="red") for lost in comparison.lost),
        *(f"changed  {change}" for change in comparison.changes),
        *(click.style(f"DISTURBED  {mark}", fg="red") for mark in comparison.disturbances),
        click.style("interval: best round now / worst before, to worst round now / best before", dim=True),
    ]


def _bounds(stream: Stream | None) -> list[str]:
    return ["n/a" if value is None else f"{value:.2f}" for value in (stream.bounds.values() if stream else ())]


def _millijoules(spread: Spread | None) -> str:
    return "n/a" if spread is None else f"{spread.value * 1e3:.3g}"


def _figure(spread: Spread | None) -> str:
    return "n/a" if spread is None else f"{spread.value:.0f}" if spread.value >= 10 else f"{spread.value:.2f}"
