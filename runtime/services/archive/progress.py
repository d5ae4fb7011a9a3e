"""Report the progress of a run in lines, from a thread that asks the ledger."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_SECONDS = 10.0


@contextmanager
def progress(ledger: Any, inputs: int, before: int, notify: Callable[[str], None]) -> Iterator[None]:
    """Report every ten seconds, while the block runs, how many results there are and how long the rest takes.

    Parameters
    ----------
    inputs
        All inputs of the run.
    before
        Inputs that have results of earlier runs.
    """
    if before:
        notify(f"{before:,} of {inputs:,} inputs have results already")
    ended = threading.Event()
    thread = threading.Thread(target=_report, args=(ledger, inputs, before, notify, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=_SECONDS)


def _report(ledger: Any, inputs: int, before: int, notify: Callable[[str], None], ended: threading.Event) -> None:
    import ray

    start, first = time.monotonic(), 0
    last = lost = (0, 0)
    while not ended.wait(_SECONDS):
        try:
            counts = ray.get(ledger.counts.remote(), timeout=_SECONDS)
        except Exception:  # noqa: BLE001, S112 (the run itself reports what is wrong)
            continue
        if counts < last:  # a new ledger: the node of the last one was lost, and its counts with it
            lost = (lost[0] + last[0], lost[1] + last[1])
        last = counts
        results, failed = min(inputs - before, lost[0] + counts[0]), lost[1] + counts[1]
        if not results:
            notify("starting the workers")
            continue
        if not first:
            start, first = time.monotonic(), results
            continue
        rate = (results - first) / (time.monotonic() - start)
        left = max(0, inputs - before - results)
        rest = f", about {_clock(left / rate)} left" if rate and left else ""
        failures = f", {failed:,} not read" if failed else ""
        notify(f"{before + results:,} results of {inputs:,} inputs{failures}, {rate:.0f} a second{rest}")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
