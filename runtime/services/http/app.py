"""The ASGI application: checks each request, finds its route, and turns every error into an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

from starlette.staticfiles import StaticFiles

from mri_edge.device.cpu import available_cpus
from mri_edge.errors import DISK_ERRORS, MriEdgeError, UsageError
from mri_edge.inference.classifier import Classifier

from .classify import Classify
from .errors import RequestRefused, refusal_of
from .exchange import Disconnected, Exchange, Message
from .limits import ByteBudget, Limits
from .models import ServedModel
from .security import HEADERS, Guard
from .uploads import Store

PAGE = Path(__file__).parent / "page"
_LONG_THREADS = 2  # for volumes, series and heatmaps

Handler = Callable[[Exchange], Awaitable[None]]


def create_app(
    classifiers: Sequence[Classifier], *, limits: Limits | None = None, token: bytes | None = None, local: bool = True
) -> App:
    """Return the application that serves some models; the first is the default of ``/v1/classify``.

    Parameters
    ----------
    classifiers
        The application closes them when it ends.
    token, local
        As for ``Guard``.

    Raises
    ------
    UsageError
        Two models have the same name.
    """
    limits = limits or Limits()
    models: dict[str, ServedModel] = {}
    for classifier in classifiers:
        model = ServedModel(classifier, limits)
        if model.name in models:
            raise UsageError(f"two models have the name {model.name}", "Serve each model once, or rename one bundle")
        models[model.name] = model
    return App(models, limits, Guard(token, local))


class App:
    """The ASGI application; see ``create_app``."""

    def __init__(self, models: dict[str, ServedModel], limits: Limits, guard: Guard) -> None:
        self.models = models
        self._limits = limits
        self._guard = guard
        self._bodies = ByteBudget(limits.held_bytes)
        decoding = ThreadPoolExecutor(available_cpus(), thread_name_prefix="decode")
        long_work = ThreadPoolExecutor(_LONG_THREADS, thread_name_prefix="long")
        self._pools = decoding, long_work
        self._classify = Classify(Store(limits, ByteBudget(limits.unpacked_bytes)), decoding, long_work)
        self._files = StaticFiles(directory=PAGE, html=True)
        self._routes: dict[tuple[str, str], Handler] = {
            ("POST", "/v1/classify"): self._answer_classify,
            ("GET", "/v2/health/live"): self._answer_live,
            ("GET", "/v2/health/ready"): self._answer_ready,
        }

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Answer one request, or start and stop with the server."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)

    async def _lifespan(self, receive: Any, send: Any) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                for model in self.models.values():
                    model.start()
                    model.ready = True
                await send({"type": "lifespan.startup.complete"})
            else:
                for model in self.models.values():
                    await model.close()
                for pool in self._pools:
                    pool.shutdown(wait=False, cancel_futures=True)
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _answer(self, scope: Message, receive: Any, send: Any) -> None:
        async def send_protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        limits = self._limits
        exchange = Exchange(scope, receive, send_protected, limits.upload_bytes, self._bodies, limits.timeout_s)
        start = perf_counter()
        try:
            await self._dispatch(exchange)
        except Disconnected:
            exchange.facts["reason"] = "disconnected"
        finally:
            exchange.close()
            exchange.facts["seconds"] = perf_counter() - start

    async def _dispatch(self, exchange: Exchange) -> None:
        try:
            self._guard.check(exchange.path, exchange.headers)
            handler = self._routes.get((exchange.method, exchange.path))
            if handler is not None:
                await handler(exchange)
            else:
                await self._answer_other(exchange)
        except asyncio.CancelledError:
            refusal = exchange.refusal_at_deadline()
            if refusal is None:
                raise
            await _refuse(exchange, refusal)
        except RequestRefused as refusal:
            await _refuse(exchange, refusal)
        except MriEdgeError as error:
            await _refuse(exchange, refusal_of(error))
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            await _refuse(exchange, RequestRefused(503, "disk", f"the server's disk fails: {error.strerror}"))

    async def _answer_classify(self, exchange: Exchange) -> None:
        name = exchange.query.get("model", next(iter(self.models)))
        await self._classify.answer(exchange, self._model(name))

    async def _answer_live(self, exchange: Exchange) -> None:
        await exchange.send_json(200, {"live": True})

    async def _answer_ready(self, exchange: Exchange) -> None:
        ready = all(model.ready for model in self.models.values())
        await exchange.send_json(200 if ready else 503, {"ready": ready})

    async def _answer_other(self, exchange: Exchange) -> None:
        if exchange.path == "/" or exchange.path.startswith("/page/"):
            await exchange.pass_on(self._files, exchange.path.removeprefix("/page"))
            return
        allowed = sorted(method for method, path in self._routes if path == exchange.path)
        if allowed:
            headers = ((b"allow", ", ".join(allowed).encode()),)
            raise RequestRefused(405, "method", f"use {' or '.join(allowed)}", headers=headers)
        raise RequestRefused(404, "no_route", "there is nothing at this path. /docs lists the routes")

    def _model(self, name: str) -> ServedModel:
        model = self.models.get(name)
        if model is None:
            raise RequestRefused(404, "no_model", f"there is no such model. Served: {', '.join(self.models)}")
        return model


async def _refuse(exchange: Exchange, refusal: RequestRefused) -> None:
    exchange.facts["reason"] = refusal.reason
    await exchange.send_json(refusal.status, {"error": refusal.message, **refusal.details}, refusal.headers)
