"""A progress bar on stderr with rate and time left, silent unless stderr is a terminal; and what that can show."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

Item = TypeVar("Item")


def at_terminal(stream: TextIO | None) -> bool:
    """Whether somebody looks at a stream; one that is closed is None."""
    return stream is not None and stream.isatty()


def plain() -> bool:
    """Whether output shall hold no colours: ``NO_COLOR`` is set (no-color.org), or the terminal knows none."""
    return bool(os.environ.get("NO_COLOR")) or dumb()


def dumb() -> bool:
    """Whether the terminal can only print lines: no bar can be drawn on it."""
    return os.environ.get("TERM") == "dumb"


def track(items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
    """Yield ``items`` and draw how far they are; ``total`` is needed for the time left."""
    if not at_terminal(sys.stderr) or dumb():
        yield from items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns,
        console=Console(stderr=True),
        transient=True,
        # Rich would write to stderr what is meant for a file or a pipe.
        redirect_stdout=at_terminal(sys.stdout),
    ) as progress:
        task = progress.add_task(label, total=total, rate="")
        for item in items:
            yield item
            speed = progress.tasks[0].speed
            progress.update(task, advance=1, rate=f"{speed:.0f}/s" if speed else "")
