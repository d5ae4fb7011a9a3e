"""The ASGI application: its routes, and the models that it opens and checks while it already answers probes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from starlette.staticfiles import StaticFiles

from mri_edge.bundles.bundle import Bundle
from mri_edge.device.cpu import available_cpus
from mri_edge.device.native import return_freed_memory
from mri_edge.errors import UsageError
from mri_edge.inference.classifier import Classifier
from mri_edge.services.http.description.html import page
from mri_edge.services.http.description.openapi import document
from mri_edge.services.http.inference_protocol.routes import InferenceProtocol
from mri_edge.services.http.scans.classify import Classify
from mri_edge.services.http.scans.uploads import Store

from . import metrics as prometheus
from .errors import RequestRefused
from .exchange import Exchange, Message
from .gate import Gate, Route, Routes
from .limits import ByteBudget, Limits
from .logs import Log
from .metrics import Metrics
from .models import ServedModel
from .security import Guard

PAGE = Path(__file__).parent / "page"
_DOCS_STYLE = Path(__file__).parent / "description" / "docs.css"
_LONG_THREADS = 2  # for volumes, series and heatmaps


def create_app(
    bundles: Sequence[Bundle],
    load: Callable[[Bundle], Classifier] = Classifier.load,
    *,
    limits: Limits | None = None,
    guard: Guard | None = None,
    log: Log | None = None,
) -> App:
    """Return the application that serves some models; the first is the default of ``/v1/classify``.

    Parameters
    ----------
    load
        Opens a model. It is called in a thread when the server starts, and the application closes what it returns.
    guard
        Who may ask. Default: only this machine, without a token.

    Raises
    ------
    UsageError
        Two models have the same name.
    """
    limits, metrics = limits or Limits(), Metrics()
    models: dict[str, ServedModel] = {}
    for bundle in bundles:
        model = ServedModel(bundle, load, limits, metrics)
        if model.name in models:
            raise UsageError(f"two models have the name {model.name}", "Serve each model once, or rename one bundle")
        models[model.name] = model
    return App(models, limits, guard or Guard(None, local=True), metrics, log or Log())


class App:
    """The ASGI application; see ``create_app``.

    Attributes
    ----------
    failure
        Why a model could not be opened, or None.
    on_ready, on_failure
        Called when all models are ready, and when one cannot be opened.
    """

    def __init__(
        self, models: dict[str, ServedModel], limits: Limits, guard: Guard, metrics: Metrics, log: Log
    ) -> None:
        self.models = models
        self.log = log
        self.failure: Exception | None = None
        self.on_ready: Callable[[], None] = lambda: None
        self.on_failure: Callable[[], None] = lambda: None
        self._metrics = metrics
        self._decoding = ThreadPoolExecutor(available_cpus(), thread_name_prefix="decode")
        self._long_work = ThreadPoolExecutor(_LONG_THREADS, thread_name_prefix="long")
        store = Store(limits, ByteBudget(limits.unpacked_bytes))
        self._classify = Classify(store, self._decoding, self._long_work)
        self._files = StaticFiles(directory=PAGE, html=True)
        files = Route(self._answer_page, "/page/")
        self._openapi = document({model.name: model.version for model in models.values()})
        routes: Routes = {
            ("GET", "/"): files,
            ("GET", "/docs"): Route(self._answer_docs, "/docs"),
            ("GET", "/docs.css"): Route(self._answer_docs_style, "/docs.css"),
            ("GET", "/openapi.json"): Route(self._answer_openapi, "/openapi.json"),
            ("POST", "/v1/classify"): Route(self._answer_classify, "/v1/classify"),
            ("GET", "/metrics"): Route(self._answer_metrics, "/metrics"),
            **InferenceProtocol(models, self._decoding).routes(),
        }
        self.gate = Gate(routes, {"/page/": files}, guard, limits, metrics, log)
        self._opening: asyncio.Task[None] | None = None

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Answer one request, or start and stop with the server."""
        if scope["type"] == "http":
            await self.gate.answer(scope, receive, send)
        elif scope["type"] == "lifespan":
            await receive()
            self._opening = asyncio.create_task(self._open_models())
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await self._close()
            await send({"type": "lifespan.shutdown.complete"})

    async def _open_models(self) -> None:
        """Open one model after the other: opening takes the most memory."""
        loop = asyncio.get_running_loop()
        try:
            with return_freed_memory():
                for model in self.models.values():
                    self.log.event("info", f"{model.name}: opening the model and replaying its golden values")
                    message = await loop.run_in_executor(self._long_work, model.open)
                    model.start()
                    self.log.event("info", message)
        except Exception as error:  # noqa: BLE001 (raised again where the server ends)
            self.failure = error
            self.on_failure()
        else:
            self.on_ready()

    async def _close(self) -> None:
        if self._opening is not None:
            await self._opening
        for model in self.models.values():
            await model.close()
        for pool in (self._decoding, self._long_work):
            pool.shutdown(wait=False, cancel_futures=True)
        self.log.flush()

    async def _answer_classify(self, exchange: Exchange) -> None:
        model = self.models.get(exchange.query.get("model", next(iter(self.models))))
        if model is None:
            raise RequestRefused(404, "no_model", f"there is no such model. Served: {', '.join(self.models)}")
        exchange.model = model.name
        await self._classify.answer(exchange, model)

    async def _answer_page(self, exchange: Exchange) -> None:
        await exchange.pass_on(self._files, exchange.path.removeprefix("/page"))

    async def _answer_docs(self, exchange: Exchange) -> None:
        await exchange.send(200, page(self._openapi), b"text/html; charset=utf-8")

    async def _answer_docs_style(self, exchange: Exchange) -> None:
        await exchange.send(200, _DOCS_STYLE.read_bytes(), b"text/css; charset=utf-8")

    async def _answer_openapi(self, exchange: Exchange) -> None:
        await exchange.send_json(200, self._openapi)

    async def _answer_metrics(self, exchange: Exchange) -> None:
        await exchange.send(200, self._metrics.text(), prometheus.CONTENT_TYPE)
