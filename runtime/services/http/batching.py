"""Run a model in one thread for all requests: whatever is waiting when the engine is free runs as one batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from typing import Any, TypeAlias

from .limits import expired

# Takes the items of several jobs of one kind, and returns the answer for each job.
Run: TypeAlias = Callable[[Sequence[Any]], Sequence[Any]]


@dataclass(eq=False, slots=True)
class _Job:
    """Items of one request that wait for the engine. Times are in seconds of ``time.monotonic``."""

    kind: str
    items: Any
    deadline: float
    queued: float
    answer: asyncio.Future[Any] | Future[Any]


_Outcomes: TypeAlias = list[tuple[_Job, Any]]  # answers and exceptions


class Batcher:
    """Collects jobs into batches and runs them in a thread of its own, one batch at a time.

    Create it in the thread of the event loop.

    Parameters
    ----------
    run
        A function for each kind of job.
    size
        Largest number of items in a batch. A job with more items is a batch of its own.
    max_wait_s
        How long the first job of a batch waits for others. With 0 a batch contains only what is waiting already, which
        costs no time: jobs that arrive while the engine runs form the next batch.
    observe
        Called in the engine's thread after each batch with the number of items, the longest wait in the queue and the
        time of the run, in seconds.
    """

    def __init__(
        self,
        run: dict[str, Run],
        size: int,
        max_wait_s: float,
        observe: Callable[[int, float, float], None] = lambda items, waited, ran: None,
    ) -> None:
        self._run = run
        self._size = size
        self._max_wait_s = max_wait_s
        self._observe = observe
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._next: _Job | None = None  # did not fit in the last batch
        self._loop = asyncio.get_running_loop()
        self._thread = Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def submit(self, kind: str, items: Any, deadline: float) -> asyncio.Future[Any]:
        """Queue the items of a request, and return its answer. Call it in the thread of the event loop."""
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._queue.put(_Job(kind, items, deadline, monotonic(), answer))
        return answer

    def run_from_thread(self, kind: str, items: Any, deadline: float) -> Any:
        """Queue the items of a request and wait for its answer, in another thread."""
        answer: Future[Any] = Future()
        self._queue.put(_Job(kind, items, deadline, monotonic(), answer))
        return answer.result()

    async def close(self) -> None:
        """Finish the jobs that are queued, and end the thread."""
        self._queue.put(None)
        await self._loop.run_in_executor(None, self._thread.join)

    def _work(self) -> None:
        while (batch := self._take()) is not None:
            now = monotonic()
            outcomes: _Outcomes = []
            ready: list[_Job] = []
            for job in batch:
                if job.answer.cancelled():  # the client has disconnected, or got an answer at its deadline
                    continue
                if now >= job.deadline:
                    outcomes.append((job, expired()))
                else:
                    ready.append(job)
            for kind in {job.kind for job in ready}:
                outcomes += self._answers([job for job in ready if job.kind == kind])
            if outcomes:
                self._loop.call_soon_threadsafe(_deliver, outcomes)

    def _answers(self, jobs: list[_Job]) -> _Outcomes:
        start = monotonic()
        try:
            answers = self._run[jobs[0].kind]([job.items for job in jobs])
        except Exception as error:  # noqa: BLE001 (raised again in each request)
            if len(jobs) == 1:
                return [(jobs[0], error)]
            return [outcome for job in jobs for outcome in self._answers([job])]
        waited = start - min(job.queued for job in jobs)
        self._observe(sum(len(job.items) for job in jobs), waited, monotonic() - start)
        return list(zip(jobs, answers, strict=True))

    def _take(self) -> list[_Job] | None:
        """Wait for a job, and return it with those that are waiting. None: the queue was closed."""
        job = self._next or self._queue.get()
        self._next = None
        if job is None:
            return None
        batch, items = [job], len(job.items)
        until = monotonic() + self._max_wait_s
        while items < self._size:
            try:
                left = until - monotonic() if self._max_wait_s else 0
                following = self._queue.get(timeout=left) if left > 0 else self._queue.get_nowait()
            except Empty:
                break
            if following is None:
                self._queue.put(None)  # end after this batch
                break
            if items + len(following.items) > self._size:
                self._next = following
                break
            batch.append(following)
            items += len(following.items)
        return batch


def _deliver(outcomes: _Outcomes) -> None:
    """Hand the answers to the requests that wait for them, in the thread of the event loop."""
    for job, outcome in outcomes:
        if job.answer.done():  # canceled
            continue
        if isinstance(outcome, Exception):
            job.answer.set_exception(outcome)
        else:
            job.answer.set_result(outcome)
