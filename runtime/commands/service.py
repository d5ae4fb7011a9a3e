"""What the commands that run as services share: their messages, and how signals end them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from mri_edge.errors import DISK_ERRORS


@contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Iterator[list[int]]:
    """Call ``stop`` at the first SIGTERM or Ctrl-C. A second one ends the program at once.

    Yields a list that holds the number of the signal once one was received.
    """
    received: list[int] = []

    def receive(number: int, frame: object) -> None:
        received.append(number)
        stop()
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        restore()


def escape(text: str) -> str:
    """Escape a text with a foreign name: a line feed could forge a line, and invalid UTF-8 could end the program."""
    return text if text.isprintable() else ascii(text)[1:-1]


def report(message: str) -> None:
    """Print a message of a service on stderr."""
    try:
        click.echo(f"mri-edge: {escape(message)}", err=True)
    except OSError as error:
        if error.errno not in DISK_ERRORS:  # a full disk under the log must not end the service
            raise
