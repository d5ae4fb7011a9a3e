"""Every request passes here: it is checked, answered by its route, logged and counted, whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeAlias

from starlette.exceptions import HTTPException

from mri_edge.errors import DISK_ERRORS, MriEdgeError

from .errors import CLOSE, RequestRefused, refusal_of
from .exchange import Disconnected, Exchange, Message
from .limits import ByteBudget, Limits
from .logs import Log
from .metrics import Metrics
from .security import HEADERS, Guard

Handler: TypeAlias = Callable[[Exchange], Awaitable[None]]

_NOBODY = 0  # the status in logs and metrics when the client had closed the connection
_UNKNOWN = "unknown"  # the route of a path that does not exist
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


@dataclass(frozen=True)
class Route:
    """What answers a path. ``pattern`` stands for the path in logs, metrics and the documentation."""

    handler: Handler
    pattern: str


Routes: TypeAlias = dict[tuple[str, str], Route]  # by method and path


class Gate:
    """Answers requests by ``routes``; ``folders`` answer every path that begins with theirs.

    ``draining`` closes each connection after its answer, because the server is ending.
    """

    def __init__(
        self, routes: Routes, folders: dict[str, Route], guard: Guard, limits: Limits, metrics: Metrics, log: Log
    ) -> None:
        self.draining = False
        self._routes = routes
        self._folders = folders
        self._guard = guard
        self._limits = limits
        self._metrics = metrics
        self._log = log
        self._bodies = ByteBudget(limits.held_bytes)
        metrics.held_bytes.set_function(lambda: self._bodies.held)

    async def answer(self, scope: Message, receive: Any, send: Any) -> None:
        """Answer one request."""

        async def send_protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS, *(CLOSE if self.draining else ())]
            await send(message)

        start = perf_counter()
        limits = self._limits
        exchange = Exchange(scope, receive, send_protected, limits.upload_bytes, self._bodies, limits.timeout_s)
        route = self._route(exchange)
        try:
            await self._answer(exchange, route)
        except Disconnected:
            exchange.reason, exchange.status = "disconnected", _NOBODY
        except RequestRefused as refusal:
            await self._refuse(exchange, refusal)
        finally:
            exchange.close()
            seconds = perf_counter() - start
            pattern = route.pattern if route else _UNKNOWN
            self._metrics.request(pattern, exchange.status, exchange.reason, seconds, exchange.received)
            self._log.request(
                exchange.method if exchange.method in _METHODS else "other",
                pattern,
                exchange.status,
                seconds,
                bytes=exchange.received,
                model=exchange.model,
                frames=exchange.frames,
                reason=exchange.reason,
            )

    def _route(self, exchange: Exchange) -> Route | None:
        method = "GET" if exchange.method == "HEAD" else exchange.method
        route = self._routes.get((method, exchange.path))
        if route is None and method == "GET":
            return next((route for folder, route in self._folders.items() if exchange.path.startswith(folder)), None)
        return route

    async def _answer(self, exchange: Exchange, route: Route | None) -> None:
        """Call the handler. Every failure becomes a RequestRefused."""
        try:
            self._guard.check(exchange.path, exchange.headers)
            await (self._no_route(exchange) if route is None else route.handler(exchange))
        except asyncio.CancelledError:
            refusal = exchange.refusal_at_deadline()
            if refusal is None:
                raise
            raise refusal from None
        except (RequestRefused, Disconnected):
            raise
        except MriEdgeError as error:
            raise refusal_of(error) from error
        except HTTPException as error:
            raise RequestRefused(error.status_code, "no_route", "there is nothing at this path") from error
        except MemoryError as error:
            raise RequestRefused(503, "out_of_memory", "the server has too little memory. Try again later") from error
        except Exception as error:
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise RequestRefused(503, "disk", f"the server's disk fails: {error.strerror}") from error
            self._log.failure(error)
            raise RequestRefused(500, "internal", "internal error. The server's log says where") from error

    async def _no_route(self, exchange: Exchange) -> None:
        allowed = sorted(method for method, known in self._routes if known == exchange.path)
        if allowed:
            headers = ((b"allow", ", ".join(allowed).encode()), *CLOSE)
            raise RequestRefused(405, "method", f"use {' or '.join(allowed)}", headers=headers)
        message = "there is nothing at this path, or no such model. /docs lists the routes"
        raise RequestRefused(404, "no_route", message, headers=CLOSE)

    async def _refuse(self, exchange: Exchange, refusal: RequestRefused) -> None:
        exchange.reason = refusal.reason
        if exchange.status == 0:  # otherwise a part of another answer was sent
            await exchange.send_json(refusal.status, {"error": refusal.message, **refusal.details}, refusal.headers)
