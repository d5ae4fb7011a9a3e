"""Bound what requests may hold: their number, their bytes, their time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

from .errors import CLOSE, RequestRefused

MAX_FILES = 10_000  # of one upload; the longest series of MR have some thousand slices
MAX_FRAMES = 10_000  # of one upload
MAX_RATIO = 200  # unpacked to packed size of a zip file; DICOM of a blank slice reaches about 100
LEAST_TIMEOUT_S = 0.1  # that a request may ask for
_RETRY_AFTER_S = b"1"


@dataclass(frozen=True)
class Limits:
    """What the server accepts.

    Attributes
    ----------
    queue
        Requests that are read, decoded, waiting or running at a time, of one model.
    upload_bytes
        Largest body of a request; what a zip file unpacks to may be four times as large.
    timeout_s
        Longest time from the headers of a request to its result. A request may ask for a shorter time.
    max_wait_s
        As for ``Batcher``.
    """

    queue: int = 64
    upload_bytes: int = 256 << 20
    timeout_s: float = 60.0
    max_wait_s: float = 0.0

    @property
    def unpacked_bytes(self) -> int:
        """Largest total size of the files in a zip file."""
        return 4 * self.upload_bytes

    @property
    def held_bytes(self) -> int:
        """Largest total size of the bodies that are held in memory at a time."""
        return 2 * self.upload_bytes


def busy(message: str) -> RequestRefused:
    """Return the refusal of a request that may be sent again later."""
    return RequestRefused(429, "queue_full", message, headers=((b"retry-after", _RETRY_AFTER_S),))


def too_large(limit: int) -> RequestRefused:
    """Return the refusal of a body that is larger than ``limit`` bytes."""
    message = f"the body is larger than {limit:,} bytes. Send fewer or smaller files, or raise --max-upload"
    return RequestRefused(413, "body_too_large", message, headers=CLOSE)


def expired() -> RequestRefused:
    """Return the refusal of a request whose deadline has passed."""
    message = "the deadline passed before the result was there. Send fewer requests at a time, or allow more time"
    return RequestRefused(504, "deadline", message)


class Turnstile:
    """Counts what is inside, and refuses more than ``most``."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.inside = 0

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Count one request within the block. Raises RequestRefused with status 429."""
        if self.inside >= self.most:
            raise busy(f"{self.inside} requests are in progress already. Try again later")
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1


class ByteBudget:
    """Counts bytes that are held, and refuses more than ``most``. Safe to share between threads."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0
        self._lock = Lock()

    def take(self, size: int) -> None:
        """Count more bytes. Raises RequestRefused with status 429."""
        with self._lock:
            if self.held + size > self.most:
                raise busy("the server holds as many uploads as its memory allows. Try again later")
            self.held += size

    def release(self, size: int) -> None:
        """Count fewer bytes."""
        with self._lock:
            self.held -= size
