"""Show the progress of a training on stderr: one line per epoch, and a bar on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from mri_edge.commands.progress import Bar, Pace, redraws

from .head import Epoch

_LINES = 20  # printed for work without epochs
_SILENCE = 60  # seconds without output after which a line is printed within an epoch


class TrainingProgress:
    """Print one line per epoch, for output that cannot show a bar."""

    def __init__(self, epochs: int, label: str) -> None:
        self._epochs, self._label = epochs, label
        self._pace: Pace | None = None

    def note(self, text: str) -> None:
        """Print a message."""
        click.echo(f"{self._label}{text}", err=True)

    def started(self, epoch: int) -> None:
        """Start the clock at the first epoch: number 1, or a later one if a training is resumed."""
        self._pace = Pace(epoch - 1)

    def images(self, count: int) -> None:
        """Count ``count`` more trained images."""

    def epoch(self, epoch: Epoch) -> None:
        """Print a line for a finished epoch."""
        pace = f"  {self._pace.words(epoch.number, self._epochs)}" if self._pace else ""
        self.note(f"{_words(epoch, self._epochs)}{pace}")


class _BarProgress(TrainingProgress):
    """Print the same lines above a bar over all images of all epochs."""

    def __init__(self, bar: Bar, images: int, epochs: int, label: str) -> None:
        super().__init__(epochs, label)
        self._bar, self._images, self._done = bar, images, 0

    def started(self, epoch: int) -> None:
        self._done = (epoch - 1) * self._images
        self._bar.update(self._done)

    def images(self, count: int) -> None:
        self._done += count
        self._bar.update(self._done)

    def epoch(self, epoch: Epoch) -> None:
        super().epoch(epoch)
        self._done = epoch.number * self._images
        following = min(epoch.number + 1, self._epochs)
        self._bar.update(self._done, label=f"{self._label}epoch {following}/{self._epochs}")


@contextmanager
def training_progress(images: int, epochs: int, label: str = "") -> Iterator[TrainingProgress]:
    """Show a training of ``epochs`` epochs of ``images`` images; ``label``, as ``"fold 2/5, "``, starts each line."""
    if not redraws(sys.stderr):
        yield TrainingProgress(epochs, label)
        return
    with Bar(f"{label}epoch 1/{epochs}", images * epochs) as bar:
        yield _BarProgress(bar, images, epochs, label)


@contextmanager
def step_progress(description: str, *, first: int = 0, every: int = 0) -> Iterator[Callable[[int, int, float], None]]:
    """Show work that is counted in steps; yield a function of steps done, total steps and loss.

    Parameters
    ----------
    first, every
        Steps before the first epoch, and steps per epoch, if the work has epochs.
    """
    if redraws(sys.stderr):
        with Bar(description) as bar:
            yield lambda done, total, loss: bar.update(done, total=total, label=_described(description, loss))
        return
    click.echo(description, err=True)
    pace: Pace | None = None
    last = 0.0

    def show(done: int, total: int, loss: float) -> None:
        nonlocal pace, last
        if pace is None:
            pace = Pace(done)  # the duration of the first step is unknown
        ended = (done - first) % every == 0 if every else done % max(1, total // _LINES) == 0
        if not (ended or done == total or pace.elapsed - last > _SILENCE):
            return
        last = pace.elapsed
        epoch = f"  epoch {(done - first) // every}/{(total - first) // every}" if every and ended else ""
        click.echo(
            f"{_described(description, loss)}{epoch}  {done} of {total} steps  {pace.words(done, total)}", err=True
        )

    yield show


def _words(epoch: Epoch, epochs: int) -> str:
    return (
        f"epoch {epoch.number:>3}/{epochs}  loss {epoch.loss:.3f}  accuracy {epoch.accuracy:.3f}  "
        f"validation loss {epoch.val_loss:.3f}  accuracy {epoch.val_accuracy:.3f}"
    )


def _described(description: str, loss: float) -> str:
    return f"{description}  loss {loss:.3f}" if loss else description  # work without a loss reports 0
