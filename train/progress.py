"""Progress of a training on stderr: epoch, loss, accuracy, time left; silent unless stderr is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .fit import Epoch

if TYPE_CHECKING:
    from rich.progress import Progress


class TrainingProgress:
    """Shows nothing; the face of what ``training_progress`` yields."""

    def images(self, count: int) -> None:
        """``count`` more images were trained on."""

    def epoch(self, epoch: Epoch) -> None:
        """An epoch has ended."""


@contextmanager
def training_progress(images: int, epochs: int) -> Iterator[TrainingProgress]:
    """A bar over ``epochs`` times ``images``, and above it one line for each epoch that ended."""
    if not sys.stderr.isatty():
        yield TrainingProgress()
        return
    with _bar() as bar:
        task = bar.add_task(f"epoch 1/{epochs}", total=images * epochs)

        class Drawn(TrainingProgress):
            def images(self, count: int) -> None:
                bar.advance(task, count)

            def epoch(self, epoch: Epoch) -> None:
                bar.console.print(
                    f"epoch {epoch.number:>3}/{epochs}  loss {epoch.loss:.3f}  accuracy {epoch.accuracy:.3f}  "
                    f"validation loss {epoch.val_loss:.3f}  accuracy {epoch.val_accuracy:.3f}",
                    highlight=False,
                )
                bar.update(
                    task, completed=epoch.number * images, description=f"epoch {min(epoch.number + 1, epochs)}/{epochs}"
                )

        yield Drawn()


@contextmanager
def step_progress(description: str) -> Iterator[Callable[[int, int, float], None]]:
    """A bar for one fine-tuning: call what it yields with steps done, steps in all, and the loss."""
    if not sys.stderr.isatty():
        yield lambda done, total, loss: None
        return
    with _bar() as bar:
        task = bar.add_task(description, total=None)

        def show(done: int, total: int, loss: float) -> None:
            bar.update(task, completed=done, total=total, description=f"{description}  loss {loss:.3f}")

        yield show


def _bar() -> Progress:
    """A bar on stderr with the time left, gone when it ends."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left"))
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
