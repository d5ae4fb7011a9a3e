"""Run the application with uvicorn. SIGTERM and Ctrl-C end it after the requests that it has accepted."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from mri_edge.errors import UsageError
from mri_edge.services.systemd import notify

from . import connection
from .app import App
from .limits import Limits

# For an encrypted key OpenSSL would ask on the terminal. uvicorn takes an empty password for none.
_NO_ANSWER = "\0"
# Accepted connections stay open for so long at the end, so that a request that is on its way gets its answer.
_LINGER_S = 0.5
_CONNECTIONS = 768  # most systems allow a process 1,024 open files
_BACKLOG = 2048  # connections that wait to be accepted, as uvicorn sets it
_MARGIN_S = 5.0  # beyond the longest time of a request
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}  # errors of `accept`
_REPORT_S = 10.0  # such an error is written this often: asyncio reports thousands a second


@dataclass(frozen=True)
class Address:
    """Where the server listens: ``port`` 0 is a free one. With a certificate and its key it speaks TLS."""

    host: str
    port: int
    tls_cert: Path | None = None
    tls_key: Path | None = None

    def listen(self) -> socket.socket:
        """Return a socket that accepts connections. Raises UsageError."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        # asyncio switches Nagle's algorithm off (40 ms an answer) only for a socket that names its protocol.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self.host, self.port))
            # Only now is the port taken, and a client that reads the line "listening" may connect.
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            raise UsageError(
                f"cannot listen on {self.host} port {self.port} ({error.strerror})", "Choose another --port or --host"
            ) from error
        return listener


class _Server(uvicorn.Server):
    """A uvicorn server that drains, reports to systemd, and returns normally: uvicorn would raise the signal again."""

    def __init__(self, config: uvicorn.Config, app: App) -> None:
        super().__init__(config)
        self._app = app
        self.interrupted = False
        self._quiet_until = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])  # it would listen without a limit for the handshake of TLS, which is then 60 seconds
        if not self.started:
            return
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._report)
        handshake_s = connection.HEADERS_S if self.config.ssl else None
        for listener in sockets or []:
            server = await loop.create_server(
                lambda: connection.BoundedConnection(self.config, self.server_state, self.lifespan.state),
                sock=listener,
                ssl=self.config.ssl,
                ssl_handshake_timeout=handshake_s,
                backlog=_BACKLOG,
            )
            self.servers.append(server)

    def _report(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Write that there are no files for new connections. Other errors of asyncio may quote a scan."""
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in _EXHAUSTED and loop.time() >= self._quiet_until:
            self._quiet_until = loop.time() + _REPORT_S
            self._app.log.event("error", f"new connections cannot be accepted: {os.strerror(error.errno)}")

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.interrupted = self.interrupted or sig == signal.SIGINT
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        if counter % 100 == 0:  # every ten seconds
            notify("WATCHDOG=1")
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        notify("STOPPING=1")
        self._app.log.event("info", "stopping: no new connections, open requests get their answers")
        self._app.gate.draining = True
        for server in self.servers:
            server.close()
        await asyncio.sleep(_LINGER_S)
        await super().shutdown(sockets)


def serve(app: App, address: Address, limits: Limits) -> bool:
    """Serve until a signal arrives. Returns whether it was Ctrl-C.

    Raises
    ------
    UsageError
        The address cannot be used, or the certificate or its key cannot be read.
    MriEdgeError
        A model cannot be opened, or does not give its golden values.
    """
    tls: dict[str, Any] = {}
    if address.tls_cert is not None:
        tls = {"ssl_certfile": address.tls_cert, "ssl_keyfile": address.tls_key, "ssl_keyfile_password": _NO_ANSWER}
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # the addresses of clients are not used
        lifespan="on",
        http=connection.BoundedConnection,
        ws="none",
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=round(limits.timeout_s + _MARGIN_S),
        **tls,
    )
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        raise UsageError(
            f"{address.tls_cert}, {address.tls_key}: not a certificate with its key ({error.strerror or error})",
            "Name PEM files that match, and a key without a pass phrase",
        ) from error
    server = _Server(config, app)

    def fail() -> None:
        server.should_exit = True

    app.on_failure = fail
    app.on_ready = lambda: notify("READY=1")
    app.log.take_over()
    with address.listen() as listener:
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        app.log.event("info", f"listening on {'https' if tls else 'http'}://{shown}:{port}")
        server.run(sockets=[listener])
    if app.failure is not None:
        raise app.failure
    app.log.event("info", "stopped")
    return server.interrupted
