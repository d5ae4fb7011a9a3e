"""State that all threads share while they decode: warnings that are off, and the turn of large pictures."""

from __future__ import annotations

import os
import threading
import warnings


class _Decoding:
    """A context for decoding; any number of threads may be inside.

    While a thread is inside, Python's warnings are off. Pillow warns about damaged metadata, which is not used, and
    about sizes that our own limits refuse, and each warning would be two more lines on stderr. A plain
    ``warnings.catch_warnings`` in each thread is no choice: two threads that leave in the order in which they
    entered would leave the warnings off for good. A permanent filter for Pillow's modules would silence them in the
    user's own code.
    """

    def __init__(self) -> None:
        self._reset()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._reset)  # the threads that were inside do not exist in the child

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self.large = threading.Lock()  # held while a large picture is decoded

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._saved.__exit__(None, None, None)


decoding = _Decoding()
