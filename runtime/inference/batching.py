"""Group a stream of items into batches, and yield an incomplete batch when the stream is slow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from queue import Empty, Full, Queue
from threading import Event, Thread
from time import monotonic
from typing import TypeVar

Item = TypeVar("Item")

_CHECK_S = 0.5  # how often a thread that waits checks whether it should stop


def batched(items: Iterable[Item], size: int, max_wait: float | None = None) -> Iterator[list[Item]]:
    """Yield lists of ``size`` items in order. A shorter list, possibly empty, means that no item is waiting now.

    Parameters
    ----------
    max_wait
        Seconds that an item waits for others to complete its batch. Items are then read in a thread of their own.
        None: every batch but the last is complete, and items are read in the caller's thread.

    An exception from ``items`` is raised after the items before it.
    """
    return _complete(items, size) if max_wait is None else _timed(items, size, max_wait)


def _complete(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    batch: list[Item] = []
    try:
        for item in items:
            batch.append(item)
            if len(batch) == size:
                yield batch
                batch = []
    except Exception:
        yield batch
        raise
    yield batch


class _End:
    """Marks the end of the queue; ``error`` is the exception that ended the stream early."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error


def _timed(items: Iterable[Item], size: int, max_wait: float) -> Iterator[list[Item]]:
    queue: Queue[Item | _End] = Queue(maxsize=size)
    stopped = Event()
    # A daemon: it may block forever on standard input, which must not keep the program from ending.
    Thread(target=_fill, args=(items, queue, stopped), name="read sources", daemon=True).start()
    try:
        first_wait, end = max_wait, None
        while end is None:
            batch, end = _next_batch(queue, size, first_wait, max_wait)
            first_wait = max_wait if batch else _CHECK_S  # no scan is waiting for its answer
            yield batch
        if end.error is not None:
            raise end.error
    finally:
        stopped.set()


def _next_batch(
    queue: Queue[Item | _End], size: int, first_wait: float, max_wait: float
) -> tuple[list[Item], _End | None]:
    """Take up to ``size`` items, waiting ``first_wait`` for the first one and ``max_wait`` for all others."""
    batch: list[Item] = []
    deadline = monotonic() + first_wait
    while len(batch) < size:
        try:
            item = queue.get(timeout=max(0, deadline - monotonic()))
        except Empty:
            break
        if isinstance(item, _End):
            return batch, item
        if not batch:
            deadline = monotonic() + max_wait
        batch.append(item)
    return batch, None


def _fill(items: Iterable[Item], queue: Queue[Item | _End], stopped: Event) -> None:
    end = _End()
    try:
        for item in items:
            _put(queue, item, stopped)
            if stopped.is_set():
                return
    except Exception as error:  # noqa: BLE001 (raised in the thread that reads the queue)
        end = _End(error)
    _put(queue, end, stopped)


def _put(queue: Queue[Item | _End], item: Item | _End, stopped: Event) -> None:
    while not stopped.is_set():
        try:
            queue.put(item, timeout=_CHECK_S)
        except Full:
            continue
        return
