"""``mri-edge verify``: check that a bundle is unchanged and that this device reproduces its recorded results."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING

import click

from mri_edge.authoring.recalibration import headline
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.decode import to_plain
from mri_edge.errors import printable
from mri_edge.inference.prediction import stdout_json

from .options import PROVIDER, REQUIRE_SIGNATURE, bundle_argument, run_options

if TYPE_CHECKING:
    from mri_edge.inference.replay import Check, Report
    from mri_edge.inference.selection import RunOptions

EXAMPLES = """\b
Examples:
  mri-edge verify
  mri-edge verify my-bundle --json
  mri-edge verify --provider cuda
"""
_DIFFERENT = 3  # exit code if a result differs
_NOT_RUN = 4  # exit code if no engine could replay any golden value
_COLORS = {"same": "green", "near": "yellow", "differs": "red", "not tried": None}


@click.command(epilog=EXAMPLES)
@bundle_argument
@REQUIRE_SIGNATURE
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with all comparisons.")
@run_options(PROVIDER)
def verify(model: str, signed_by: str | None, as_json: bool, run: RunOptions) -> int:
    """Check a bundle's hashes, and replay its golden values on this device's CPU.

    Compares file bytes, decoded pixels, resized tensor, probabilities and label. The exit code is 3
    if a stage differs, and the output names the first; 4 if no installed engine can replay anything.
    With a provider other than auto or cpu the artifacts run there, where float32 may differ more (TF32).
    Without BUNDLE: the embedded model.
    """
    from mri_edge.inference.replay import replay

    bundle = Bundle.open(model, signed_by=signed_by)
    provider = "cpu" if run.provider == "auto" else run.provider
    report = replay(bundle, provider)
    first = report.first_difference
    code = _DIFFERENT if first else _NOT_RUN if report.recorded and not report.replayed else 0
    if as_json:
        record = {
            "bundle": str(bundle.folder),
            "provider": provider,
            "agrees": code == 0,
            "first_difference": asdict(first) if first else None,
            "replayed": report.replayed,
            **({"recalibration": to_plain(bundle.manifest.recalibration)} if bundle.manifest.recalibration else {}),
            "checks": [asdict(check) for check in report.checks],
        }
        click.echo(stdout_json(record, indent=2))
    else:
        _print(bundle, report, provider)
    return code


def _print(bundle: Bundle, report: Report, provider: str) -> None:
    click.secho(f"{bundle.manifest.title}  {printable(str(bundle.folder))}", bold=True)
    if bundle.manifest.recalibration:
        click.echo(printable(headline(bundle.manifest)))
    for (stage, group), checks in groupby(report.checks, key=_group):
        for line in _lines(stage, group, list(checks)):
            click.echo(line)
    first = report.first_difference
    if first:
        where = " in ".join(part for part in (first.subject, first.engine) if part)
        click.secho(f"FIRST DIFFERENCE  {first.stage}, {where}: {printable(first.detail)}", fg="red")
    elif report.replayed:
        where = "This device's CPU" if provider == "cpu" else f"The provider {provider}"
        click.secho(f"{where} reproduces the recorded results.", fg="green")
    elif report.recorded:
        click.secho("NOT REPLAYED  No engine here runs an artifact with golden values. See 'mri-edge doctor'", fg="red")
    else:
        click.echo("Every hash is correct. The bundle has no golden values, so nothing was replayed.")


def _group(check: Check) -> tuple[str, str]:
    """Return the group of a check: its stage, and its artifact and engine if it has an engine."""
    return check.stage, f"{check.subject}  {check.engine}" if check.engine else ""


def _lines(stage: str, group: str, checks: list[Check]) -> Iterable[str]:
    tally = {status: sum(check.status == status for check in checks) for status in _COLORS}
    statuses = ", ".join(
        click.style(status if group else f"{count} {status}", fg=color)
        for (status, color), count in zip(_COLORS.items(), tally.values(), strict=True)
        if count
    )
    yield f"{stage:<13}  {group}  {statuses}" if group else f"{stage:<13}  {statuses}"
    for check in checks:
        if check.detail and check.status != "same":
            yield f"{'':<13}  {check.subject if not group else ''}  {printable(check.detail)}".rstrip()
