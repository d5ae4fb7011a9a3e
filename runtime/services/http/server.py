"""Run the application with uvicorn. SIGTERM and Ctrl-C end it after the requests that it has accepted."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from .app import App


@dataclass(frozen=True)
class Address:
    """Where the server listens: ``port`` 0 is a free one. With a certificate and its key it speaks TLS."""

    host: str
    port: int
    tls_cert: Path | None = None
    tls_key: Path | None = None


class _Server(uvicorn.Server):
    """A uvicorn server that ends with exit code 0: uvicorn raises the signal again, which would kill the program."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the server."""
        return signal.SIGINT in self._captured_signals


def serve(app: App, address: Address) -> bool:
    """Serve until a signal arrives. Returns whether it was Ctrl-C."""
    tls: dict[str, Any] = {}
    if address.tls_cert is not None:
        tls = {"ssl_certfile": address.tls_cert, "ssl_keyfile": address.tls_key}
    config = uvicorn.Config(
        app,
        host=address.host,
        port=address.port,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        ws="none",
        **tls,
    )
    server = _Server(config)
    server.run()
    return server.interrupted
