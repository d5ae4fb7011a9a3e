"""A connection of uvicorn with bounds on the headers of a request: their bytes, and the time until they are there."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADERS = 64 << 10  # bytes of the path and all headers of a request
HEADERS_S = 10.0  # seconds from a new connection, or from the first byte of a request, to the end of its headers


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's connection, which by itself waits forever and keeps any number of headers."""

    _received = 0  # bytes of headers that are not complete
    _timer: asyncio.TimerHandle | None = None  # runs while headers are not complete

    def connection_made(self, transport: Any) -> None:
        """Start to wait for the first request."""
        super().connection_made(transport)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop to wait."""
        self._stop_timer()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Start to wait for the headers of a request."""
        self._await_headers()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Start to answer the request."""
        self._stop_timer()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Receive bytes, of which the parser keeps those of a header that is not complete."""
        super().data_received(data)
        if self._timer is not None:
            self._received += len(data)
            if self._received > MAX_HEADERS and not self.transport.is_closing():
                self.send_400_response("The headers are too long.")

    def _await_headers(self) -> None:
        self._stop_timer()
        self._received = 0
        self._timer = self.loop.call_later(HEADERS_S, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
