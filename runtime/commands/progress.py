"""A progress bar on stderr with rate and time left, silent unless stderr is a terminal; and what that can show."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

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


def redraws(stream: TextIO | None) -> bool:
    """Whether bars can be drawn over on a stream."""
    return at_terminal(stream) and not dumb()


def console(stream: TextIO, *, width: int | None = None) -> Console:
    """A Rich console on a stream, without escape sequences where ``plain``; Rich itself keeps bold under NO_COLOR.

    ``width``: columns where no terminal says how many.
    """
    from rich.console import Console

    return Console(
        file=stream,
        color_system=None if plain() else "auto",
        markup=False,
        emoji=False,
        highlight=False,
        width=None if at_terminal(stream) else width,
    )


class Pace:
    """How long work has taken, and how long the rest will take at the same rate."""

    def __init__(self, done: int = 0) -> None:
        """``done``: units that were finished before, by a run that was cut off; they say nothing of the rate."""
        self._start, self._done = time.monotonic(), done

    def clock(self) -> str:
        """The time that it has taken: ``1:02``."""
        return _clock(self.elapsed)

    @property
    def elapsed(self) -> float:
        """Seconds since the work began."""
        return time.monotonic() - self._start

    def words(self, done: int, total: int) -> str:
        """``1:02 elapsed, about 7:35 left``, after ``done`` of ``total`` units."""
        words = f"{self.clock()} elapsed"
        if self._done < done < total:
            words += f", about {_clock(self.elapsed / (done - self._done) * (total - done))} left"
        return words


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def track(items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
    """Yield ``items`` and draw how far they are; ``total`` is needed for the time left."""
    if not redraws(sys.stderr):
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
