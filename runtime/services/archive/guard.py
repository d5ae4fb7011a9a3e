"""Keep a scan that ends its process from ending the run: count broken attempts, and repeat them in a child process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

import ray

from mri_edge.errors import InputError

MOST_CRASHES = 3

Value = TypeVar("Value")


class Ledger:
    """One process for the whole run that knows which attempts have begun and not ended, and counts results."""

    def __init__(self) -> None:
        self._begun: dict[tuple[str, int], int] = {}
        self._results = self._failed = 0

    def begin(self, stage: str, number: int) -> int:
        """Note that an attempt begins, and return how many earlier ones were broken off."""
        earlier = self._begun.get((stage, number), 0)
        self._begun[stage, number] = earlier + 1
        return earlier

    def end(self, stage: str, number: int) -> None:
        """Note that an attempt has ended."""
        self._begun.pop((stage, number), None)

    def add(self, results: int, failed: int) -> None:
        """Count results, for the progress only: a repeated attempt counts twice."""
        self._results += results
        self._failed += failed

    def counts(self) -> tuple[int, int]:
        """Return the number of results, and how many of them are failures."""
        return self._results, self._failed


def start_ledger() -> Any:
    """Start the process of the ledger, which Ray starts again, empty, if its node is lost."""
    return ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Ledger).remote()


class Attempt:
    """One attempt at a part of the work, which the ledger knows while the ``with`` block runs.

    Attributes
    ----------
    earlier
        How many earlier attempts ended with their process: by the scan, by the system, or with the whole node.
    """

    def __init__(self, ledger: Any, stage: str, number: int) -> None:
        self._ledger, self._key = ledger, (stage, number)
        self.earlier = 0

    def __enter__(self) -> Attempt:
        self.earlier = ray.get(self._ledger.begin.remote(*self._key))
        return self

    def __exit__(self, *_: object) -> None:
        self._ledger.end.remote(*self._key)


class Isolation:
    """Calls functions in a child process. Used in a ``with`` block."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Isolation:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def call(self, function: Callable[..., Value], *arguments: Any) -> Value | None:
        """Return what ``function`` returns; None if its process ended three times. Other exceptions are raised."""
        for _ in range(MOST_CRASHES):
            if self._pool is None:
                self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
            try:
                return self._pool.submit(function, *arguments).result()
            except BrokenProcessPool:
                self._stop()
        return None

    def _stop(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def crashed(name: str) -> InputError:
    """Return the failure of an input that ended its process each time."""
    return InputError(
        f"{name}: reading it ended the process {MOST_CRASHES} times (a decoder crash or too little memory)",
        "Export it again, or give the workers more memory",
        code="crashed",
        value=MOST_CRASHES,
        limit=MOST_CRASHES,
        source=name,
    )
