"""Write a record and its page to the output folder, and print it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mri_edge.commands.output import print_problems
from mri_edge.inference.prediction import stdout_json
from mri_edge.storage.atomic import atomic_write, clear_leftovers, make_folder


def prepare_folder(out: Path | None) -> None:
    """Create the output folder before long work, so that a folder that cannot be written fails first."""
    if out is not None:
        make_folder(out)
        clear_leftovers(out)


def publish(
    record: dict[str, Any],
    out: Path | None,
    name: str,
    *,
    page: Callable[[], str],
    print_tables: Callable[[dict[str, Any]], None],
    as_json: bool,
) -> int:
    """Write ``NAME.json`` and ``NAME.html``, print the record, and return the exit code: 1 if a scan cannot be read.

    ``page`` makes the page; it is called only if there is an output folder.
    """
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    if out is not None:
        # The page is larger, and the first to fail on a full disk. Then an older report is left as it was.
        atomic_write(out / f"{name}.html", page())
        atomic_write(out / f"{name}.json", text)
    print_problems(record)
    if as_json:
        click.echo(stdout_json(record, indent=1))
    else:
        print_tables(record)
    if out is not None:
        click.echo(f"report: {out / f'{name}.html'}", err=True)
    return 1 if record["unreadable"] else 0
