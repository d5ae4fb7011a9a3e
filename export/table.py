"""Print the results of an export as a table."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from mri_edge.authoring.figures import with_interval

if TYPE_CHECKING:
    from .exporter import Result

_WIDTH = 120  # columns if the output is no terminal
_LEFT_ALIGNED = ("artefact", "verdict")


def print_results(results: list[Result]) -> None:
    """Print size, accuracy with interval, differences, flips and verdict of each artefact; then the reasons."""
    from rich.table import Table

    from mri_edge.commands.progress import console

    table = Table(box=None, pad_edge=False)
    for name in ("artefact", "MB", "accuracy (95%)", "largest |Δp|", "mean |Δp|", "flips", "verdict"):
        table.add_column(name, justify="left" if name in _LEFT_ALIGNED else "right", no_wrap=True)
    for result in results:
        comparison = result.comparison
        table.add_row(
            result.artefact.file,
            f"{result.artefact.size_bytes / 1e6:.1f}",
            with_interval(comparison.accuracy.value, comparison.accuracy.low, comparison.accuracy.high),
            f"{comparison.max_difference:.1e}",
            f"{comparison.mean_difference:.1e}",
            f"{len(comparison.flips)}/{comparison.images}",
            comparison.verdict,
        )
    console(sys.stdout, width=_WIDTH).print(table)
    for result in results:
        for reason in result.comparison.reasons:
            click.echo(f"{result.artefact.file}: {result.comparison.verdict}: {reason}")
