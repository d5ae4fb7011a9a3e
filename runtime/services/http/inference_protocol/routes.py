"""Open Inference Protocol v2, as KServe and Triton speak it: health, metadata and inference."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import mri_edge
from mri_edge.errors import InputError
from mri_edge.inference.preparing import decode, prepare
from mri_edge.scans.frame import Pixels, not_one_frame
from mri_edge.services.http.errors import RequestRefused, refusal_of
from mri_edge.services.http.exchange import Exchange
from mri_edge.services.http.gate import Route, Routes
from mri_edge.services.http.models import TENSORS, ServedModel

from .codec import INPUT, LABEL, PROBABILITIES, InferRequest, read_request, write_response

_BINARY = b"application/octet-stream"
_LENGTH = b"inference-header-content-length"
_LARGE_JSON = 64 << 10  # bytes; parsing more would delay other requests


class InferenceProtocol:
    """Answers the routes below ``/v2``. ``decoding`` are the threads that decode files."""

    def __init__(self, models: dict[str, ServedModel], decoding: Executor) -> None:
        self._models = models
        self._decoding = decoding

    def routes(self) -> Routes:
        """Return the route for each method and path."""
        routes: Routes = {
            ("GET", "/v2"): Route(self._server, "/v2"),
            ("GET", "/v2/"): Route(self._server, "/v2"),  # so in open_inference_rest.yaml of the specification
            ("GET", "/v2/health/live"): Route(self._live, "/v2/health/live"),
            ("GET", "/v2/health/ready"): Route(self._ready, "/v2/health/ready"),
        }
        for model in self._models.values():
            for version in ("", f"/versions/{model.version}"):
                path, pattern = f"/v2/models/{model.name}{version}", "/v2/models/{model}"
                if version:
                    pattern += "/versions/{version}"
                routes["GET", path] = Route(partial(self._model, model=model), pattern)
                routes["GET", f"{path}/ready"] = Route(partial(self._model_ready, model=model), f"{pattern}/ready")
                routes["POST", f"{path}/infer"] = Route(partial(self._infer, model=model), f"{pattern}/infer")
        return routes

    async def _server(self, exchange: Exchange) -> None:
        facts = {"name": "mri-edge", "version": mri_edge.__version__, "extensions": ["binary_tensor_data"]}
        await exchange.send_json(200, facts)

    async def _live(self, exchange: Exchange) -> None:
        await exchange.send_json(200, {"live": True})

    async def _ready(self, exchange: Exchange) -> None:
        ready = all(model.ready for model in self._models.values())
        await exchange.send_json(200 if ready else 503, {"ready": ready})

    async def _model_ready(self, exchange: Exchange, model: ServedModel) -> None:
        await exchange.send_json(200 if model.ready else 503, {"name": model.name, "ready": model.ready})

    async def _model(self, exchange: Exchange, model: ServedModel) -> None:
        model.check_ready()
        classifier = model.classifier
        preprocessing, labels = classifier.bundle.manifest.preprocessing, classifier.bundle.manifest.labels
        image = {"name": INPUT, "datatype": "UINT8", "shape": [-1, preprocessing.height, preprocessing.width, 3]}
        outputs = [
            {"name": PROBABILITIES, "datatype": "FP32", "shape": [-1, len(labels)]},
            {"name": LABEL, "datatype": "BYTES", "shape": [-1]},
        ]
        platform = f"{classifier.engine.name}_{Path(classifier.artifact.file).suffix[1:]}"
        facts = {"name": model.name, "versions": [model.version], "platform": platform}
        await exchange.send_json(200, {**facts, "inputs": [image], "outputs": outputs})

    async def _infer(self, exchange: Exchange, model: ServedModel) -> None:
        exchange.model = model.name
        model.check_ready()
        with model.turnstile.enter():
            body = await exchange.body()
            request = await self._read(exchange, body, model)
            if request.timeout_s is not None:
                exchange.expire_in(request.timeout_s)
            images = request.images
            if isinstance(images, list):
                images = await self._decode(exchange, images, model)
            exchange.frames = len(images)
            answer = model.batcher.submit(TENSORS, images, exchange.deadline)
            probabilities, chosen = await exchange.wait_for(answer)
            labels = model.classifier.bundle.manifest.labels
            content, json_length = write_response(
                request, model.name, model.version, probabilities, [labels[index] for index in chosen]
            )
            if json_length is None:
                await exchange.send(200, content)
            else:
                await exchange.send(200, content, _BINARY, ((_LENGTH, b"%d" % json_length),))

    async def _read(self, exchange: Exchange, body: bytes, model: ServedModel) -> InferRequest:
        length = exchange.headers.get(_LENGTH)
        if length is not None and not length.isdigit():
            raise RequestRefused(400, "bad_request", "Inference-Header-Content-Length must be a whole number")
        preprocessing = model.classifier.bundle.manifest.preprocessing
        json_length = None if length is None else int(length[:20])
        arguments = body, json_length, preprocessing.height, preprocessing.width
        if (len(body) if json_length is None else json_length) > _LARGE_JSON:
            return await exchange.run(self._decoding, read_request, *arguments)
        return read_request(*arguments)

    async def _decode(self, exchange: Exchange, files: list[bytes], model: ServedModel) -> Pixels:
        work = [exchange.start(self._decoding, _tensor_of, model, file, number) for number, file in enumerate(files)]
        return np.stack(await exchange.wait_for(asyncio.gather(*work)))


def _tensor_of(model: ServedModel, file: bytes, number: int) -> Any:
    """Decode a file with one frame, and return its tensor, uint8 (H, W, 3). Raises RequestRefused."""
    classifier = model.classifier
    try:
        frames = decode(file, classifier.reading)
        decoded = next(frames, None)
        if decoded is None or decoded.frame.count != 1:
            raise not_one_frame(file, decoded.frame.count if decoded else 0, "Send it to /v1/classify")
        return prepare([decoded], classifier.bundle.manifest.preprocessing, keep_pixels=False)[0].frame.pixels
    except InputError as error:
        refusal = refusal_of(error)
        refusal.message = f"{INPUT}[{number}]: {refusal.message}"
        raise refusal from error
