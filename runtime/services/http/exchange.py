"""One HTTP request and its answer: read the body within limits, notice a client that disconnects, send the answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor, Future
from functools import partial
from time import monotonic
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from mri_edge.inference.prediction import as_json

from .errors import CLOSE, Headers, RequestRefused
from .limits import ByteBudget, expired, too_large

Result = TypeVar("Result")
Message = dict[str, Any]

JSON = b"application/json"
_WATCH_AFTER_S = 0.005  # how long a request waits before it notices that its client has disconnected


def _begin(calls: list[Callable[[], Result]]) -> Result:
    return calls.pop()()


class Disconnected(Exception):
    """The client has closed the connection: nobody waits for an answer."""


class Exchange:
    """A request and its answer.

    Attributes
    ----------
    status
        Of the answer, or 0 while none was sent.
    received
        Bytes of the body.
    model, frames, reason
        For the log: the name of a model that is served, how many results were sent, and why there is none.
        None of them may come from the content of a scan, or name a file.
    """

    def __init__(
        self, scope: Message, receive: Any, send: Any, limit: int, budget: ByteBudget, timeout_s: float
    ) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.status = 0
        self.received = 0
        self.model: str | None = None
        self.frames = 0
        self.reason: str | None = None
        self._receive, self._send = receive, send
        self._limit, self._budget = limit, budget
        self._jobs: dict[Future[Any], list[Callable[[], Any]]] = {}  # in threads, each with its call until it begins
        self._complete = False
        self._expired = False
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self.deadline = monotonic() + timeout_s
        self._timer = self._loop.call_later(timeout_s, self._expire)

    @property
    def query(self) -> dict[str, str]:
        """The parameters behind the question mark."""
        return dict(parse_qsl(self.scope["query_string"].decode("latin-1"), keep_blank_values=True))

    def expire_in(self, seconds: float) -> None:
        """Shorten the time until the deadline, as the client asks. A longer time has no effect."""
        if monotonic() + seconds < self.deadline:
            self.deadline = monotonic() + seconds
            self._timer.cancel()
            self._timer = self._loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        self._expired = True
        if self._task is not None:
            self._task.cancel()

    def refusal_at_deadline(self) -> RequestRefused | None:
        """Return the refusal for a task that was canceled because the deadline passed, otherwise None."""
        if not self._expired:
            return None
        if self._complete:
            return expired()
        message = "the body did not arrive in time. Send fewer or smaller files, or raise --timeout of the server"
        return RequestRefused(408, "slow_body", message, headers=CLOSE)

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield the body as it arrives. Its bytes count toward the budget until the exchange is closed.

        Raises
        ------
        RequestRefused
            413: it is larger than the limit, by its header or while it arrives. 415: it is compressed. 429: the budget
            is used up.
        Disconnected
            The client has closed the connection.
        """
        if self.headers.get(b"content-encoding", b"identity") != b"identity":
            raise RequestRefused(415, "encoding", "a compressed body is not accepted. Send it without Content-Encoding")
        if int(self.headers.get(b"content-length", 0)) > self._limit:
            raise too_large(self._limit)
        while not self._complete:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            piece = message.get("body", b"")
            if self.received + len(piece) > self._limit:
                raise too_large(self._limit)
            self._budget.take(len(piece))
            self.received += len(piece)
            self._complete = not message.get("more_body", False)
            yield piece

    async def body(self) -> bytes:
        """Return the whole body. Raises as ``stream``."""
        pieces = [piece async for piece in self.stream()]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def wait_for(self, result: asyncio.Future[Result]) -> Result:
        """Wait for a result. Raises Disconnected and cancels it when the client closes the connection.

        Call it after the body was read.
        """
        watchers: list[asyncio.Task[Message]] = []

        def watch() -> None:
            watchers.append(self._loop.create_task(self._receive()))
            watchers[0].add_done_callback(lambda _: result.cancel())

        # Most results are there earlier, and a task for each of them would take longer than the rest of this method.
        timer = self._loop.call_later(_WATCH_AFTER_S, watch)
        try:
            return await result
        except asyncio.CancelledError:
            if any(watcher.done() for watcher in watchers):
                raise Disconnected from None
            raise
        finally:
            timer.cancel()
            for watcher in watchers:
                watcher.cancel()

    async def run(self, pool: Executor, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function in a thread, and wait as ``wait_for``."""
        return await self.wait_for(self.start(pool, function, *arguments))

    def start(self, pool: Executor, function: Callable[..., Result], *arguments: Any) -> asyncio.Future[Result]:
        """Call a function in a thread. The bytes of the body count toward the budget until no call needs them."""
        calls: list[Callable[[], Result]] = [partial(function, *arguments)]
        job = pool.submit(_begin, calls)
        self._jobs[job] = calls
        # The pool keeps a job that is canceled until a thread is free, but need not keep its arguments.
        job.add_done_callback(lambda job: self._jobs.pop(job).clear())
        return asyncio.wrap_future(job)

    async def send(self, status: int, body: bytes, content_type: bytes = JSON, headers: Headers = ()) -> None:
        """Send the answer."""
        self.status = status
        fields = [(b"content-type", content_type), (b"content-length", b"%d" % len(body)), *headers]
        await self._send({"type": "http.response.start", "status": status, "headers": fields})
        await self._send({"type": "http.response.body", "body": b"" if self.method == "HEAD" else body})

    async def send_json(self, status: int, content: Any, headers: Headers = ()) -> None:
        """Send an answer as JSON."""
        await self.send(status, as_json(content).encode(), JSON, headers)

    async def pass_on(self, app: Any, path: str) -> None:
        """Let another ASGI application answer, as for this path."""

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
            await self._send(message)

        await app({**self.scope, "path": path, "root_path": ""}, self._receive, send)

    def close(self) -> None:
        """Stop the timer, and give back the bytes of the body as soon as no thread works on them."""
        self._timer.cancel()
        for job in [*self._jobs]:
            job.cancel()
        if ending := [asyncio.wrap_future(job) for job in [*self._jobs]]:
            asyncio.gather(*ending, return_exceptions=True).add_done_callback(lambda _: self._release())
        else:
            self._release()

    def _release(self) -> None:
        self._budget.release(self.received)
