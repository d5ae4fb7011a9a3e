"""Progress of a training on stderr: a bar on a terminal, and a line an epoch everywhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from mri_edge.commands.progress import Pace, console, redraws

from .head import Epoch

if TYPE_CHECKING:
    from rich.progress import Progress

_LINES = 20  # of work that has no epochs
_SILENCE = 60  # seconds without a line after which one comes in the middle of an epoch


class TrainingProgress:
    """One line for each epoch that ended; what ``training_progress`` yields where no bar can be drawn."""

    def __init__(self, epochs: int, label: str) -> None:
        self._epochs, self._label = epochs, label
        self._pace: Pace | None = None

    def note(self, text: str) -> None:
        """Say what is done between the epochs."""
        click.echo(f"{self._label}{text}", err=True)

    def started(self, epoch: int) -> None:
        """The first epoch to train begins: number 1, or a later one where a training is resumed."""
        self._pace = Pace(epoch - 1)

    def images(self, count: int) -> None:
        """``count`` more images were trained on."""

    def epoch(self, epoch: Epoch) -> None:
        """An epoch has ended."""
        pace = f"  {self._pace.words(epoch.number, self._epochs)}" if self._pace else ""
        self.note(f"{_words(epoch, self._epochs)}{pace}")


class _Bar(TrainingProgress):
    """The same beside a bar over all images of all epochs."""

    def __init__(self, bar: Progress, images: int, epochs: int, label: str) -> None:
        super().__init__(epochs, label)
        self._bar, self._images = bar, images
        self._task = bar.add_task(f"{label}epoch 1/{epochs}", total=images * epochs)

    def note(self, text: str) -> None:
        self._bar.console.print(f"{self._label}{text}")

    def started(self, epoch: int) -> None:
        self._bar.update(self._task, completed=(epoch - 1) * self._images)

    def images(self, count: int) -> None:
        self._bar.advance(self._task, count)

    def epoch(self, epoch: Epoch) -> None:
        super().epoch(epoch)
        following = min(epoch.number + 1, self._epochs)
        self._bar.update(
            self._task,
            completed=epoch.number * self._images,
            description=f"{self._label}epoch {following}/{self._epochs}",
        )


@contextmanager
def training_progress(images: int, epochs: int, label: str = "") -> Iterator[TrainingProgress]:
    """Show a training of ``epochs`` epochs of ``images`` images; ``label`` begins each line: ``"fold 2/5, "``."""
    if not redraws(sys.stderr):
        yield TrainingProgress(epochs, label)
        return
    with _bar() as bar:
        yield _Bar(bar, images, epochs, label)


@contextmanager
def step_progress(description: str, *, first: int = 0, every: int = 0) -> Iterator[Callable[[int, int, float], None]]:
    """Show work that is counted in steps: call what it yields with steps done, steps in all, and the loss.

    Parameters
    ----------
    first, every
        Steps before the first epoch, and steps of an epoch, where the work has epochs.
    """
    if redraws(sys.stderr):
        with _bar() as bar:
            task = bar.add_task(description, total=None)

            def draw(done: int, total: int, loss: float) -> None:
                bar.update(task, completed=done, total=total, description=_described(description, loss))

            yield draw
        return
    click.echo(description, err=True)
    pace: Pace | None = None
    last = 0.0

    def show(done: int, total: int, loss: float) -> None:
        nonlocal pace, last
        if pace is None:
            pace = Pace(done)  # how long the first step took is not known
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


def _bar() -> Progress:
    """A bar on stderr with the time left, gone when it ends."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left"))
    return Progress(*columns, TimeRemainingColumn(), console=console(sys.stderr), transient=True)
