"""A connection of uvicorn with bounds on what a client may make it wait for, which does not lose its last answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADERS = 64 << 10  # bytes of the path and all headers of a request, and of all trailers behind its body
HEADERS_S = 10.0  # seconds from a new connection, or from the first byte of a request, to the end of its headers
# What is received and discarded of a request that has its answer already, as of a body that is too large. A socket that
# is closed with unread bytes resets the connection, and the client loses the answer (RFC 9112, section 9.6).
LINGER_BYTES = 256 << 20
LINGER_S = 10.0
READING_S = 30.0  # a client that waits for a large answer must receive some of it in each such time


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's connection, which by itself waits forever, keeps any number of headers, and closes at once."""

    _left = 0  # bytes that may still arrive while the timer runs
    _timer: asyncio.TimerHandle | None = None  # runs while headers are not complete, and while bytes are discarded
    _reading: asyncio.TimerHandle | None = None  # runs while the client has not received what was sent
    _damaged = False  # the rest of what arrives is no request
    _has_headers = False  # the headers of a request are complete: fields that follow are trailers
    _overhead = 0  # bytes since the last content of a body: trailers, and what else surrounds chunks
    _socket: Any = None  # the transport of the event loop
    transport: Any
    parser: Any

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.parser = _Parser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does

    def connection_made(self, transport: Any) -> None:
        """Start to wait for the first request."""
        self._socket = transport
        lingering: Any = _Lingering(transport, self)
        super().connection_made(lingering)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop to wait."""
        self.transport.closing = True
        self._stop_timer()
        self._stop_reading()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Start to wait for the client to receive, because more is buffered than it should be."""
        super().pause_writing()
        self._await_reading()

    def resume_writing(self) -> None:
        """Stop to wait, because little is buffered; but not if the socket closes only when the rest is received."""
        if not self._socket.is_closing():
            self._stop_reading()
        super().resume_writing()

    def on_message_begin(self) -> None:
        """Start to wait for the headers of a request."""
        self._await_headers()
        self._has_headers = False
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header. Trailers are not kept, because nothing reads them."""
        if not self._has_headers:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start to answer the request."""
        if self.parser.has_offer:
            return
        self._stop_timer()
        self._has_headers = True
        self._overhead = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body."""
        self._overhead = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Start to wait for the next request, if this one has its answer already."""
        if self.parser.has_offer:
            return
        self._overhead = 0
        super().on_message_complete()
        self.cycle.more_body = False
        if self.cycle.response_complete:
            self._await_headers()

    def on_response_complete(self) -> None:
        """Discard the rest of a request that was answered before all of it arrived."""
        super().on_response_complete()
        if self._is_discarding and not self.transport.closing:
            self._discard()

    def data_received(self, data: bytes) -> None:
        """Receive bytes, of which the parser keeps those of a header or trailer that is not complete."""
        timer = self._timer
        if not self.transport.closing:
            self._overhead += len(data)
            super().data_received(data)
        if self._timer is None and self.cycle is not None and self.cycle.response_complete:
            self._await_headers()  # line ends between two requests, at which uvicorn forgets its own timer
        elif self._timer is not None and self._timer is timer:  # otherwise a part belongs to the request before
            self._left -= len(data)
        if self._left < 0 or (self._overhead > MAX_HEADERS and not self.transport.closing):
            self._refuse_more()

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be parsed."""
        self._damaged = True
        if self._is_discarding:  # its request has an answer
            self.transport.close()
        else:
            super().send_400_response(msg)

    @property
    def _is_discarding(self) -> bool:
        return self.cycle is not None and self.cycle.response_complete and self.cycle.more_body

    @property
    def must_linger(self) -> bool:
        """Whether the client may still be sending, so that closing the socket would reset the connection."""
        return self._damaged or (self.cycle is not None and self.cycle.more_body)

    def linger(self) -> None:
        """Discard what still arrives, until the client closes the connection or a bound is reached."""
        if self._socket.can_write_eof():  # not with TLS
            self._socket.write_eof()
        self.flow.resume_reading()
        self._discard()

    def close_socket(self) -> None:
        """Close when the client has received what was written, for which asyncio alone would wait forever."""
        self._socket.close()
        if self._reading is None:
            self._await_reading()

    def _refuse_more(self) -> None:
        if self.transport.closing or self._is_discarding:
            self._socket.abort()
        else:
            self.send_400_response("The headers or trailers are too long.")

    def _await_headers(self) -> None:
        if not self.transport.closing:
            self._wait(HEADERS_S, MAX_HEADERS, self.close_socket)

    def _discard(self) -> None:
        self._wait(LINGER_S, LINGER_BYTES, self._socket.abort)

    def _wait(self, seconds: float, most: int, end: Callable[[], None]) -> None:
        self._stop_timer()
        self._left = most
        self._timer = self.loop.call_later(seconds, end)

    def _await_reading(self) -> None:
        left = self._socket.get_write_buffer_size()

        def check() -> None:
            if self._socket.get_write_buffer_size() < left:
                self._await_reading()
            else:
                self._socket.abort()

        self._reading = self.loop.call_later(READING_S, check)

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Parser(httptools.HttpRequestParser):
    """A parser that ignores offers to change the protocol, as RFC 9110, section 7.8, allows.

    httptools ends such a request at its headers, without its body. Therefore the headers are parsed again without the
    offer, and ``connection`` ignores the first time. Clients that would rather use HTTP/2 make this offer.
    """

    def __init__(self, connection: BoundedConnection) -> None:
        super().__init__(connection)
        self._connection = connection

    @property
    def has_offer(self) -> bool:
        """Whether the headers that are complete offer to change the protocol."""
        return self.should_upgrade() and self.get_method() != b"CONNECT"  # which has no other meaning

    def feed_data(self, data: Any) -> None:
        """Parse bytes."""
        while True:
            try:
                super().feed_data(data)
                return
            except httptools.HttpParserUpgrade as end:
                if not self.has_offer:
                    raise
                data = memoryview(data)[end.args[0] :]
                super().feed_data(self._headers_without_offer())

    def _headers_without_offer(self) -> bytes:
        url, fields = self._connection.url, self._connection.headers
        lines = [b"%s %s HTTP/%s" % (self.get_method(), url, self.get_http_version().encode())]
        lines += [b"%s: %s" % field for field in fields if field[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])


class _Lingering:
    """A transport that closes its socket only when the client has sent everything.

    Attributes
    ----------
    closing
        Whether it was closed; the socket may still be open.
    """

    def __init__(self, transport: Any, connection: BoundedConnection) -> None:
        self._transport = transport
        self._connection = connection
        self.closing = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send bytes; none after ``close``."""
        if not self.closing:
            self._transport.write(data)

    def is_closing(self) -> bool:
        """Whether no more can be sent."""
        return self.closing or self._transport.is_closing()

    def close(self) -> None:
        """Close after what was written is sent."""
        if self.closing:
            return
        self.closing = True
        if self._connection.must_linger and not self._transport.is_closing():
            self._connection.linger()
        else:
            self._connection.close_socket()
