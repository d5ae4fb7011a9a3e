"""Define the refusal of a request: its HTTP status, a stable reason for programs, and a message for people."""

from __future__ import annotations

from typing import TypeAlias

from mri_edge.errors import EngineError, InputError, MriEdgeError, UsageError

Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]
# For an answer before the body was read: the connection cannot be used again.
CLOSE: Headers = ((b"connection", b"close"),)

# Statuses of scans that cannot be read, by InputError.code. All other codes are 422.
INPUT_STATUSES = {"too_large": 413, "unsupported": 415, "out_of_memory": 503}


class RequestRefused(Exception):
    """A request that gets no result. ``reason`` is one stable word, which logs and metrics count.

    ``details`` are added to the JSON of the answer, ``headers`` to its headers.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        *,
        details: dict[str, object] | None = None,
        headers: Headers = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.details = details or {}
        self.headers = headers


def refusal_of(error: MriEdgeError) -> RequestRefused:
    """Return the refusal for an error that the library raised about a request."""
    if isinstance(error, InputError):
        details: dict[str, object] = {"hint": error.hint, "code": error.code}
        details |= {"value": error.value, "limit": error.limit}
        return RequestRefused(INPUT_STATUSES.get(error.code, 422), error.code, error.problem, details=details)
    if isinstance(error, UsageError):
        return RequestRefused(400, "usage", str(error))
    return RequestRefused(500, "engine" if isinstance(error, EngineError) else "model", str(error))
