"""Draw aligned text tables for the terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import click


def table(rows: Sequence[Sequence[str]], *, right: Collection[int] = (), heading: bool = True) -> list[str]:
    """Lines of a table whose columns are as wide as their widest cell, two spaces apart.

    The last column is not padded, so that long text stays whole and can be searched and copied. Cells may be styled.

    Parameters
    ----------
    rows
        As many cells in each.
    right
        Positions of the columns that are aligned to the right: numbers.
    heading
        Whether the first row is a heading, which is drawn bold.
    """
    widths = [max(len(click.unstyle(cell)) for cell in column) for column in zip(*rows, strict=True)]
    lines = ["  ".join(_pad(cell, widths[i], right=i in right) for i, cell in enumerate(row)).rstrip() for row in rows]
    if heading and lines:
        lines[0] = click.style(lines[0], bold=True)
    return lines


def _pad(cell: str, width: int, *, right: bool) -> str:
    padding = " " * (width - len(click.unstyle(cell)))
    return padding + cell if right else cell + padding
