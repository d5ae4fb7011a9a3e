"""``POST /v1/classify``: scans in, the objects of ``mri-edge predict --json`` out."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

from mri_edge.errors import InputError
from mri_edge.inference.prediction import NOTICE, Failure
from mri_edge.inference.preparing import Prepared, decode, prepare
from mri_edge.services.http.errors import INPUT_STATUSES, RequestRefused
from mri_edge.services.http.exchange import Exchange
from mri_edge.services.http.limits import LEAST_TIMEOUT_S
from mri_edge.services.http.models import SCANS, ServedModel

from .long_work import ScanWork
from .results import Options, as_dict
from .uploads import Store, Upload, receive

_PARAMETERS = ("by", "heatmap", "index", "model", "picture", "plane", "timeout")


def options_of(query: dict[str, str]) -> Options:
    """Read the parameters of a request. Raises RequestRefused with status 400."""
    if unknown := next((name for name in query if name not in _PARAMETERS), None):
        known = ", ".join(_PARAMETERS)
        raise RequestRefused(400, "usage", f"unknown parameter {unknown[:40]!r}. Known: {known}")
    by = _choice(query, "by", ("slice", "series", "study"))
    index = query.get("index")
    if index is not None and not (index.isascii() and index.isdigit() and len(index) < 8):
        raise RequestRefused(400, "usage", "index must be a whole number from 0")
    options = Options(
        by,
        _choice(query, "plane", ("axial", "any")),
        _choice(query, "heatmap", ("0", "1")) == "1",
        _choice(query, "picture", ("0", "1")) == "1",
        None if index is None else int(index),
    )
    if by != "slice" and (options.heatmap or index is not None):
        raise RequestRefused(400, "usage", "heatmap and index are about one slice. Leave out by")
    return options


def _choice(query: dict[str, str], name: str, values: tuple[str, ...]) -> Any:
    value = query.get(name, values[0])
    if value not in values:
        raise RequestRefused(400, "usage", f"{name} must be {' or '.join(values)}")
    return value


def timeout_of(query: dict[str, str]) -> float:
    """Return the seconds that a request allows, infinite if it does not say. Raises RequestRefused with status 400."""
    try:
        seconds = float(query.get("timeout", "inf"))
    except ValueError:
        seconds = math.nan
    if not seconds >= LEAST_TIMEOUT_S:
        raise RequestRefused(400, "usage", f"timeout must be a number of seconds, at least {LEAST_TIMEOUT_S}")
    return seconds


class Classify:
    """Answers ``POST /v1/classify``.

    Parameters
    ----------
    decoding
        Threads that decode single scans.
    long_work
        Threads for volumes, series, heatmaps and the files of zip files and forms, which take long and must not delay
        single scans.
    """

    def __init__(self, store: Store, decoding: Executor, long_work: Executor) -> None:
        self._store = store
        self._decoding, self._long_work = decoding, long_work

    async def answer(self, exchange: Exchange, model: ServedModel) -> None:
        """Answer one request."""
        options = options_of(exchange.query)
        exchange.expire_in(timeout_of(exchange.query))
        model.check_ready()
        with model.turnstile.enter():
            upload = Upload(self._store)
            try:
                await receive(exchange, upload, self._long_work)
                results = await self._results(exchange, model, upload, options)
            finally:
                upload.stopped.set()
                await self._close(upload)
            for result in results:
                if result.get("file", "") is None:  # the scan was not in a file
                    result["file"] = upload.name
            await _send(exchange, upload.renamed(results), upload.skipped)

    async def _close(self, upload: Upload) -> None:
        """Remove the files of a request, even if it is canceled; in a thread, because there may be thousands."""
        if upload.has_files:
            await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._decoding, upload.close))
        else:
            upload.close()

    async def _results(
        self, exchange: Exchange, model: ServedModel, upload: Upload, options: Options
    ) -> list[dict[str, Any]]:
        if upload.scan is not None and options.is_plain:
            try:
                prepared = await exchange.run(self._decoding, _only_frame, model, upload.scan, options.picture)
            except InputError as error:
                return [Failure(None, error).to_dict()]
            if prepared is not None:
                answer = model.batcher.submit(SCANS, [prepared], exchange.deadline)
                (prediction,) = await exchange.wait_for(answer)
                if options.picture:  # which takes long to compress
                    return [await exchange.run(self._decoding, as_dict, prediction, options, model.classifier)]
                return [prediction.to_dict()]
        work = ScanWork(model, options, exchange.deadline, upload.stopped)
        return await exchange.run(self._long_work, work.run, upload)


def _only_frame(model: ServedModel, scan: bytes, keep_pixels: bool) -> Prepared | None:
    """Decode a scan of one frame; None if it has several. Raises InputError."""
    classifier = model.classifier
    decoded = next(decode(scan, classifier.reading), None)
    if decoded is None or decoded.frame.count > 1:
        return None
    return prepare([decoded], classifier.bundle.manifest.preprocessing, keep_pixels=keep_pixels)[0]


async def _send(exchange: Exchange, results: list[dict[str, Any]], skipped: Sequence[str]) -> None:
    """Send one result as it is, and several results, or one and the names of files that are no scans, as a list."""
    exchange.frames = len(results)
    if not results:
        raise RequestRefused(422, "missing", "the upload has no scan in it", details={"skipped": list(skipped)})
    failed = [result for result in results if "error" in result]
    status = 200
    if len(failed) == len(results):
        exchange.reason = failed[0]["code"]
        status = INPUT_STATUSES.get(failed[0]["code"], 422)
    if len(results) == 1 and not skipped:
        await exchange.send_json(status, results[0])
    else:
        await exchange.send_json(status, {"results": results, "skipped": list(skipped), "notice": NOTICE})
