"""Print the results of an export as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mri_edge.authoring.figures import with_interval
from mri_edge.commands.output import table

if TYPE_CHECKING:
    from .exporter import Result

_HEADER = ("artefact", "MB", "accuracy (95%)", "largest |Δp|", "mean |Δp|", "flips", "verdict")


def print_results(results: list[Result]) -> None:
    """Print size, accuracy with interval, differences, flips and verdict of each artefact; then the reasons."""
    rows = [_HEADER]
    for result in results:
        comparison = result.comparison
        rows.append(
            (
                result.artefact.file,
                f"{result.artefact.size_bytes / 1e6:.1f}",
                with_interval(comparison.accuracy.value, comparison.accuracy.low, comparison.accuracy.high),
                f"{comparison.max_difference:.1e}",
                f"{comparison.mean_difference:.1e}",
                f"{len(comparison.flips)}/{comparison.images}",
                comparison.verdict,
            )
        )
    for line in table(rows, right=range(1, 6)):
        click.echo(line)
    for result in results:
        for reason in result.comparison.reasons:
            click.echo(f"{result.artefact.file}: {result.comparison.verdict}: {reason}")
