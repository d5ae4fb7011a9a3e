"""Count what the node does, from several threads."""

from __future__ import annotations

import threading
from collections import Counter


class Counters:
    """Named counts since the start of the program. A name may have an outcome."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, name: str, outcome: str = "", number: int = 1) -> None:
        """Add to a count."""
        with self._lock:
            self._counts[name, outcome] += number

    def items(self) -> list[tuple[tuple[str, str], int]]:
        """Return the counts, sorted by name and outcome."""
        with self._lock:
            return sorted(self._counts.items())

    def total(self, name: str) -> int:
        """Return a count, over all outcomes."""
        return sum(number for (found, _), number in self.items() if found == name)
