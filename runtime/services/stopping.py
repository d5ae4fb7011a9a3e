"""End a service in an orderly way at a signal."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


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
