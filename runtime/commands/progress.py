"""Show progress on stderr: a bar on a terminal; elsewhere lines or nothing."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, TextIO, TypeVar

Item = TypeVar("Item")

_WIDTH = 30  # characters of the bar itself
_REDRAW_SECONDS = 0.1
_LINE_SECONDS = 60.0  # between the lines where there is no bar


def at_terminal(stream: TextIO | None) -> bool:
    """Whether a stream is a terminal. A closed standard stream is None."""
    return stream is not None and stream.isatty()


def is_colorless() -> bool:
    """Whether output must have no colors: ``NO_COLOR`` is set (no-color.org), or the terminal is a simple one."""
    return bool(os.environ.get("NO_COLOR")) or _is_dumb()


def redraws(stream: TextIO | None) -> bool:
    """Whether a stream is a terminal that can redraw a line."""
    return at_terminal(stream) and not _is_dumb()


def _is_dumb() -> bool:
    return os.environ.get("TERM") == "dumb"


class Pace:
    """Measure how long work has taken and estimate how long the rest takes at the same rate."""

    def __init__(self, done: int = 0) -> None:
        """``done``: units that an earlier, interrupted run finished. They do not count toward the rate."""
        self._start, self._done = time.monotonic(), done

    def clock(self) -> str:
        """Return the time since the work began: ``1:02``."""
        return _clock(self.elapsed)

    @property
    def elapsed(self) -> float:
        """Seconds since the work began."""
        return time.monotonic() - self._start

    def words(self, done: int, total: int) -> str:
        """Return ``1:02 elapsed, about 7:35 left``, after ``done`` of ``total`` units."""
        words = f"{self.clock()} elapsed"
        if self._done < done < total:
            words += f", about {_clock(self.elapsed / (done - self._done) * (total - done))} left"
        return words


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Bar:
    """A progress bar on the last line of a terminal, erased when its ``with`` block ends.

    Within the block, text written to ``sys.stderr``, and to ``sys.stdout`` where that is a terminal too, appears above
    the bar.
    """

    def __init__(self, label: str, total: int | None = None, *, stream: TextIO | None = None) -> None:
        """If ``total`` is None, the count is shown without a bar."""
        self._label, self._total, self._done = label, total, 0
        self._stream: TextIO = stream or sys.stderr
        self._pace = Pace()
        self._shown = ""
        self._next = 0.0

    def __enter__(self) -> Bar:
        self._streams = sys.stdout, sys.stderr
        proxy: Any = _AboveBar
        sys.stderr = proxy(sys.stderr, self)
        if at_terminal(sys.stdout):
            sys.stdout = proxy(sys.stdout, self)
        self.draw()
        return self

    def __exit__(self, *_: object) -> None:
        sys.stdout, sys.stderr = self._streams
        self.clear()

    def update(self, done: int, *, total: int | None = None, label: str | None = None) -> None:
        """Set how many units are done. The line is drawn at most ten times a second, unless the label changes."""
        is_due = label not in (None, self._label) or time.monotonic() >= self._next
        self._done = done
        self._total = total or self._total
        self._label = label or self._label
        if is_due:
            self.draw()

    def draw(self) -> None:
        """Draw the line now."""
        self._next = time.monotonic() + _REDRAW_SECONDS
        self.clear()
        self._shown = self._line()[: _columns(self._stream) - 1]
        self._stream.write(self._shown)
        self._stream.flush()

    def clear(self) -> None:
        """Erase the line with spaces, because some terminals ignore escape sequences."""
        if self._shown:
            self._stream.write(f"\r{' ' * len(self._shown)}\r")
            self._stream.flush()
            self._shown = ""

    def _line(self) -> str:
        if self._total is None:
            return f"{self._label}  {self._done or ''}  {self._pace.clock()} elapsed"
        filled = round(_WIDTH * min(1, self._done / max(1, self._total)))
        bar = "#" * filled + "-" * (_WIDTH - filled)
        return f"{self._label}  [{bar}]  {self._done}/{self._total}  {self._pace.words(self._done, self._total)}"


class _AboveBar:
    """A standard stream that erases the bar before it writes, and draws the bar again after a whole line."""

    def __init__(self, stream: TextIO, bar: Bar) -> None:
        self._stream, self._bar = stream, bar

    def write(self, text: str) -> int:
        self._bar.clear()
        count = self._stream.write(text)
        if text.endswith("\n"):
            self._stream.flush()
            self._bar.draw()
        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _columns(stream: TextIO) -> int:
    with suppress(OSError, ValueError):
        return os.get_terminal_size(stream.fileno()).columns or 80
    return 80


def _with_lines(items: Iterable[Item], label: str, total: int | None) -> Iterator[Item]:
    pace, due = Pace(), _LINE_SECONDS
    for done, item in enumerate(items, 1):
        yield item
        if pace.elapsed >= due and sys.stderr is not None:
            count = f"{done:,} of {total:,}" if total else f"{done:,}"
            print(f"{label}  {count}  {pace.words(done, total or 0)}", file=sys.stderr, flush=True)
            due = pace.elapsed + _LINE_SECONDS


def track(items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
    """Yield ``items``, and show progress: a bar on a terminal, elsewhere a line a minute.

    With ``total`` it shows the remaining time too.
    """
    if not redraws(sys.stderr):
        yield from _with_lines(items, label, total)
        return
    with Bar(label, total) as bar:
        for done, item in enumerate(items, 1):
            yield item
            bar.update(done)
