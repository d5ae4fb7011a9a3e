"""Full queues, deadlines, sizes and clients that disconnect, with an engine that waits."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pytest

httpx = pytest.importorskip("httpx")

from mri_edge.services.http.limits import Limits

INFER = "/v2/models/small/infer"
TIMEOUT_S = 120


@pytest.fixture
def ask(images, binary):
    """Return a function that sends one tensor."""

    def send(server, **request):
        body, headers = binary(images[:1], **request)
        return httpx.post(server.url + INFER, content=body, headers=headers, timeout=TIMEOUT_S)

    return send


def inside(server):
    return server.app.models["small"].turnstile.inside


def test_a_full_queue_answers_429_at_once(held, ask):
    server = held(Limits(queue=3))
    with ThreadPoolExecutor(3) as pool:
        accepted = [pool.submit(ask, server) for _ in range(3)]
        server.wait_until(lambda: inside(server) == 3)
        refused = ask(server)
        assert refused.status_code == 429
        assert refused.headers["Retry-After"] == "1"
        assert "in progress" in refused.json()["error"]
        server.engine.released.set()
        assert [future.result(TIMEOUT_S).status_code for future in accepted] == [200] * 3
    assert ask(server).status_code == 200
    metrics = httpx.get(f"{server.url}/metrics", timeout=TIMEOUT_S).text
    assert 'mri_edge_refusals_total{reason="queue_full",route="/v2/models/{model}/infer"} 1.0' in metrics


@pytest.mark.parametrize("by", ["server", "parameter", "query"])
def test_a_request_past_its_deadline_gets_504_and_never_runs(held, ask, examples, by):
    server = held(Limits(timeout_s=0.5 if by == "server" else 600))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, server, parameters={"timeout": 600_000_000})
        assert server.engine.running.wait(TIMEOUT_S)
        if by == "query":
            file = (examples / "phantom-1.jpg").read_bytes()
            late = httpx.post(f"{server.url}/v1/classify?timeout=0.3", content=file, timeout=TIMEOUT_S)
        else:
            late = ask(server, **({"parameters": {"timeout": 300_000}} if by == "parameter" else {}))
        assert late.status_code == 504
        assert "deadline" in late.json()["error"]
        server.engine.released.set()
        assert first.result(TIMEOUT_S).status_code == (504 if by == "server" else 200)
    assert ask(server).status_code == 200
    assert server.engine.batches == [1, 1]  # the first request and the last: the late one was dropped


def test_the_engine_drops_jobs_past_their_deadline_itself(held):
    import asyncio

    from mri_edge.services.http.batching import Batcher
    from mri_edge.services.http.errors import RequestRefused

    ran = []

    async def main():
        batcher = Batcher({"k": lambda jobs: [ran.append(job) for job in jobs]}, 8, 0)
        with pytest.raises(RequestRefused) as caught:
            await batcher.submit("k", [1], time.monotonic() - 1)
        assert caught.value.status == 504
        await batcher.submit("k", [2], time.monotonic() + 60)
        await batcher.close()

    asyncio.run(main())
    assert ran == [[2]]


def test_a_job_that_fails_does_not_fail_the_others_of_its_batch(held):
    import asyncio

    from mri_edge.services.http.batching import Batcher

    def run(jobs):
        if any(job == [2] for job in jobs):
            raise ValueError("bad")
        return [job[0] * 10 for job in jobs]

    async def main():
        batcher = Batcher({"k": run}, 8, 0.2)
        answers = [batcher.submit("k", [number], time.monotonic() + 60) for number in (1, 2, 3)]
        found = await asyncio.gather(*answers, return_exceptions=True)
        assert found[0] == 10
        assert isinstance(found[1], ValueError)
        assert found[2] == 30
        await batcher.close()

    asyncio.run(main())


def test_max_wait_collects_a_batch_and_size_bounds_it(held):
    import asyncio

    from mri_edge.services.http.batching import Batcher

    batches = []

    def run(jobs):
        batches.append([len(job) for job in jobs])
        return [None] * len(jobs)

    async def main():
        batcher = Batcher({"k": run}, 4, 30)
        deadline = time.monotonic() + 60
        answers = [batcher.submit("k", [0] * size, deadline) for size in (1, 2, 1, 3, 2, 9, 4)]
        await asyncio.gather(*answers)
        await batcher.close()

    start = time.monotonic()
    asyncio.run(main())
    assert batches == [[1, 2, 1], [3], [2], [9], [4]]
    assert time.monotonic() - start < 25  # full batches and those that the next job ends do not wait


def test_a_client_that_disconnects_costs_no_run(held, ask, images, binary):
    server = held()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, server)
        assert server.engine.running.wait(TIMEOUT_S)
        body, headers = binary(images)
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            lines = [f"POST {INFER} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
            server.wait_until(lambda: inside(server) == 2)
        server.wait_until(lambda: inside(server) == 1)
        server.engine.released.set()
        assert first.result(TIMEOUT_S).status_code == 200
    assert ask(server).status_code == 200
    assert server.engine.batches == [1, 1]
    server.wait_until(lambda: '"reason": "disconnected"' in server.lines)


def raw(server, head, body=b""):
    """Send bytes on a connection of its own, and return what arrives until the server closes it."""
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.settimeout(TIMEOUT_S)
        connection.sendall(head.replace("\n", "\r\n").encode() + body)
        received = b""
        while piece := connection.recv(1 << 16):
            received += piece
    return received


def test_a_large_body_is_refused_before_it_is_sent(held):
    server = held(Limits(upload_bytes=1000))
    answer = raw(server, "POST /v1/classify HTTP/1.1\nHost: localhost\nContent-Length: 1001\n\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"larger than 1,000 bytes" in answer
    assert b"connection: close" in answer.lower()


def test_a_large_body_without_a_length_is_refused_while_it_arrives(held):
    server = held(Limits(upload_bytes=1000))
    head = "POST /v1/classify HTTP/1.1\nHost: localhost\nTransfer-Encoding: chunked\n\n"
    answer = raw(server, head, b"3e8\r\n" + bytes(1000) + b"\r\n1\r\n\0\r\n")  # without the end
    assert answer.startswith(b"HTTP/1.1 413 ")
    small_enough = raw(
        server, head.replace("\n\n", "\nConnection: close\n\n"), b"3e8\r\n" + bytes(1000) + b"\r\n0\r\n\r\n"
    )
    assert small_enough.startswith(b"HTTP/1.1 415 ")


def test_a_body_that_does_not_arrive_in_time_gets_408(held):
    server = held(Limits(timeout_s=0.3))
    answer = raw(server, "POST /v1/classify HTTP/1.1\nHost: localhost\nContent-Length: 1000\n\n", b"abc")
    assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("noise", [b"X: " + b"a" * 400_000, b"a" * 400_000, b"X: y\r\n" * 80_000])
def test_headers_without_end_are_refused(held, noise):
    server = held()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.settimeout(TIMEOUT_S)
        answer = b""
        try:
            connection.sendall(b"GET / HTTP/1.1\r\n" + noise)
            answer = connection.recv(1000)
        except ConnectionError:  # it was closed while the rest was being sent
            pass
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
    assert httpx.get(f"{server.url}/v2", timeout=TIMEOUT_S).status_code == 200


@pytest.mark.parametrize("path", ["GET /v2", "POST /v1/classify"])  # one is answered before its body, one after it
@pytest.mark.parametrize(("start", "piece"), [(b"0\r\nX: ", b"a"), (b"0\r\n", b"X: y\r\n"), (b"1;", b"a")])
def test_trailers_without_end_are_refused(held, path, start, piece):
    server = held(Limits(timeout_s=20))
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.settimeout(TIMEOUT_S)
        connection.sendall(f"{path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        connection.sendall(b"1\r\na\r\n" + start)

        def send():
            for _ in range(32):  # more than the buffers of both sockets
                connection.sendall(piece * (1_000_000 // len(piece)))

        if path == "GET /v2":
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
            with pytest.raises(ConnectionError):
                send()
        else:
            send()  # it is discarded, so that the client reads its answer
            assert connection.recv(1000).startswith(b"HTTP/1.1 400 ")


def test_trailers_are_not_kept(held, monkeypatch):
    server, scopes = held(), []

    async def answer(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        scopes.append(scope)
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    monkeypatch.setattr(server.server.config, "loaded_app", answer)
    chunked = "POST / HTTP/1.1\nHost: localhost\nTransfer-Encoding: chunked\n\n1\na\n0\nX-Trailer: x\nHost: evil\n\n"
    answers = raw(server, chunked + "GET / HTTP/1.1\nHost: localhost\nX-Header: x\nConnection: close\n\n")
    assert answers.count(b"HTTP/1.1 204 ") == 2
    assert [[name for name, _ in scope["headers"]] for scope in scopes] == [
        [b"host", b"transfer-encoding"],
        [b"host", b"x-header", b"connection"],
    ]


@pytest.mark.parametrize("start", [b"", b"GET / HTTP/1.1\r\nX: ", b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\nGET "])
def test_slow_headers_are_not_waited_for(held, monkeypatch, start):
    monkeypatch.setattr("mri_edge.services.http.connection.HEADERS_S", 0.3)
    server = held()
    answer = raw(server, start.decode().replace("\r\n", "\n"))  # returns when the server closes the connection
    assert answer == b"" or answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("start", [b"", b"\x16\x03\x01"])
def test_a_slow_handshake_is_not_waited_for(held, monkeypatch, certificate, start):
    monkeypatch.setattr("mri_edge.services.http.connection.HEADERS_S", 2.0)
    server = held(tls=certificate)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.settimeout(30)  # half of what asyncio would wait for
        connection.sendall(start)
        context = ssl.create_default_context(cafile=str(certificate[0]))
        url = f"https://localhost:{server.port}/v2"
        assert httpx.get(url, verify=context, timeout=TIMEOUT_S).status_code == 200
        with suppress(ConnectionResetError):
            assert connection.recv(1000) == b""


def allow_more_files(pid, count):
    """Let a process open only this many files in addition to those that it has open."""
    resource = pytest.importorskip("resource")
    if not hasattr(resource, "prlimit"):
        pytest.skip("needs prlimit")
    most = max(int(file.name) for file in Path(f"/proc/{pid}/fd").iterdir()) + count
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]))


def test_the_log_says_when_there_are_no_files_for_connections(serve):
    server = serve("--model", "small")
    address = ("127.0.0.1", int(server.wait_until_ready().rpartition(":")[2]))
    allow_more_files(server.process.pid, 10)
    with ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(socket.create_connection(address))
        server.wait_for("error new connections cannot be accepted: Too many open files")
    assert httpx.get(f"{server.url}/v2", timeout=TIMEOUT_S).status_code == 200
    assert server.log.count("cannot be accepted") == 1  # asyncio reports it thousands of times


@pytest.mark.parametrize("size", [1_100_000, 4_200_000])
def test_a_form_with_many_files_needs_few_open_files(serve, examples, size):
    server = serve("--model", "small", "--max-upload", "64")
    url = server.wait_until_ready()
    allow_more_files(server.process.pid, 30)
    scan = (examples / "phantom-1.jpg").read_bytes()
    files = [("scan", (f"{number}.jpg", scan.ljust(size, b"\0"))) for number in range(60_000_000 // size)]
    response = httpx.post(f"{url}/v1/classify", files=files, timeout=TIMEOUT_S)
    assert response.status_code == 200, server.log
    assert len(response.json()["results"]) == len(files)


def test_a_large_body_of_a_short_request_is_no_header(held, images, binary):
    server = held(released=True)
    body, headers = binary(images)  # 147,000 bytes, more than headers may have
    with httpx.Client(base_url=server.url, timeout=TIMEOUT_S) as client:
        for _ in range(3):
            assert client.post(INFER, content=body, headers=headers).status_code == 200


def test_bodies_in_memory_are_bounded_together(held, ask):
    server = held(Limits(upload_bytes=60_000))  # so that 120,000 bytes may be held
    with ThreadPoolExecutor(2) as pool:
        held_bodies = [pool.submit(ask, server) for _ in range(2)]  # of 49,300 bytes
        server.wait_until(lambda: inside(server) == 2)
        refused = ask(server)
        assert refused.status_code == 429
        assert "uploads" in refused.json()["error"]
        server.engine.released.set()
        assert [future.result(TIMEOUT_S).status_code for future in held_bodies] == [200, 200]
    assert ask(server).status_code == 200
    server.wait_until(lambda: server.app.gate._bodies.held == 0)


def test_long_work_ends_when_its_client_has_gone(held, zip_of, examples):
    server = held()
    files = zip_of([(f"{number}.jpg", (examples / "phantom-1.jpg").read_bytes()) for number in range(40)])
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/classify", content=files, timeout=httpx.Timeout(TIMEOUT_S, read=1.0))
    server.wait_until(lambda: inside(server) == 0)
    server.engine.released.set()
    server.wait_until(lambda: server.app._long_work._work_queue.qsize() == 0)
    body = json.dumps({"inputs": []})
    assert httpx.post(server.url + INFER, content=body, timeout=TIMEOUT_S).status_code == 400
    assert sum(server.engine.batches) <= 8  # only the batch that was running


@pytest.mark.parametrize("timeout", ["", "&timeout=0.5"])
def test_a_heatmap_ends_when_nobody_waits_for_it(held, examples, timeout):
    """Its about 140 runs would delay the heatmaps of others."""
    server = held()
    scan = (examples / "phantom-1.jpg").read_bytes()
    with suppress(httpx.ReadTimeout):
        patience = httpx.Timeout(TIMEOUT_S, read=None if timeout else 1.0)
        httpx.post(f"{server.url}/v1/classify?heatmap=1{timeout}", content=scan, timeout=patience)
    assert server.engine.running.is_set()
    server.wait_until(lambda: inside(server) == 0)
    server.engine.released.set()
    server.wait_until(lambda: server.app.gate._bodies.held == 0)  # the thread has ended
    assert len(server.engine.batches) == 1  # only the run that was in progress
    answer = httpx.post(f"{server.url}/v1/classify?heatmap=1", content=scan, timeout=TIMEOUT_S)
    assert "explanation" in answer.json()


def test_files_of_a_request_that_expires_while_they_are_written_are_removed(
    held, monkeypatch, tmp_path, zip_of, examples
):
    from mri_edge.services.http.scans import uploads

    real, proceed, begun = uploads.entries, threading.Event(), threading.Event()

    def slow(file, limits):
        for name, pieces in real(file, limits):
            yield name, pieces
            begun.set()
            assert proceed.wait(TIMEOUT_S)

    monkeypatch.setattr(uploads, "entries", slow)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    server = held(Limits(timeout_s=0.5))
    scan = (examples / "phantom-1.jpg").read_bytes()
    packed = zip_of([("a.jpg", scan), ("b.jpg", scan)])
    assert httpx.post(f"{server.url}/v1/classify", content=packed, timeout=TIMEOUT_S).status_code == 504
    assert begun.is_set()
    proceed.set()
    server.wait_until(lambda: server.app._classify._store.budget.held == 0)
    assert [*tmp_path.iterdir()] == []
    assert inside(server) == 0


def test_a_thread_that_writes_files_ends_at_its_next_piece(held, monkeypatch, zip_of, examples):
    from mri_edge.services.http.scans import uploads

    proceed, pieces = threading.Event(), []

    def content():
        for _ in range(100):
            pieces.append(None)
            yield b"x"
            assert proceed.wait(TIMEOUT_S)

    monkeypatch.setattr(uploads, "entries", lambda file, limits: [("a.jpg", content())])
    server = held(Limits(timeout_s=600))
    packed = zip_of([("a.jpg", b"")])
    threading.Timer(2, proceed.set).start()
    response = httpx.post(f"{server.url}/v1/classify?timeout=0.3", content=packed, timeout=TIMEOUT_S)
    assert response.status_code == 504
    server.wait_until(lambda: server.app.gate._bodies.held == server.app._classify._store.budget.held == 0)
    assert len(pieces) <= 2


def test_zip_files_that_take_long_delay_no_single_scan(held, monkeypatch, zip_of, examples):
    from mri_edge.services.http.scans import uploads

    proceed = threading.Event()
    monkeypatch.setattr(uploads, "entries", lambda file, limits: proceed.wait(TIMEOUT_S) and [])
    server = held(released=True)
    scan = (examples / "phantom-1.jpg").read_bytes()
    packed = zip_of([("a.jpg", scan)])

    def ask(timeout, **upload):
        return httpx.post(f"{server.url}/v1/classify?timeout={timeout}", **upload, timeout=TIMEOUT_S)

    with ThreadPoolExecutor(8) as pool:
        late = [pool.submit(ask, 0.3, content=packed) for _ in range(8)]
        late += [pool.submit(ask, 0.3, files={"a": packed, "b": packed}) for _ in range(8)]
        assert [future.result().status_code for future in late] == [504] * 16
    most = 2 * len(packed) + 1000  # of a form, by each of the two threads that have begun
    assert len(packed) <= server.app.gate._bodies.held <= 2 * most
    assert ask(10, content=scan).json()["file"] is None
    assert ask(10, files={"a": ("a.jpg", scan)}).json()["file"] == "a.jpg"
    proceed.set()
    server.wait_until(lambda: server.app.gate._bodies.held == 0)


@pytest.mark.parametrize("has_begun", [False, True])
def test_a_body_counts_until_no_thread_can_use_it(has_begun):
    import asyncio
    import weakref

    from mri_edge.services.http.exchange import Exchange
    from mri_edge.services.http.limits import ByteBudget

    class Body(bytearray):
        """Something that a weak reference can refer to."""

    async def main():
        messages = iter([{"type": "http.request", "body": b"12345"}])

        async def receive():
            return next(messages, None) or await asyncio.sleep(TIMEOUT_S)

        budget, proceed, begun = ByteBudget(100), threading.Event(), threading.Event()

        def work(body):
            begun.set()
            assert proceed.wait(TIMEOUT_S)

        async def ask(body):
            exchange = Exchange(
                {"method": "POST", "path": "/", "headers": []}, receive, None, limit=10, budget=budget, timeout_s=600
            )
            try:
                await exchange.body()
                await exchange.run(pool, work, body)
            finally:
                exchange.close()

        with ThreadPoolExecutor(1) as pool:
            if not has_begun:
                pool.submit(work, None)
            body = Body()
            seen = weakref.ref(body)
            task = asyncio.create_task(ask(body))
            del body
            await asyncio.to_thread(begun.wait, TIMEOUT_S)
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            del task
            await asyncio.sleep(0.05)
            found = budget.held, seen() is not None
            proceed.set()
            assert found == ((5, True) if has_begun else (0, False))
            until = time.monotonic() + TIMEOUT_S
            while budget.held or seen() is not None:
                assert time.monotonic() < until
                await asyncio.sleep(0.01)

    asyncio.run(main())


def test_an_engine_that_fails_is_not_blamed_on_the_scan(held, monkeypatch, examples):
    from mri_edge.errors import EngineError

    server = held(released=True)

    def fail(batch, names=()):
        raise EngineError("the GPU has fallen off the bus")

    monkeypatch.setattr(server.engine, "run_outputs", fail)
    response = httpx.post(
        f"{server.url}/v1/classify", content=(examples / "phantom-1.jpg").read_bytes(), timeout=TIMEOUT_S
    )
    assert response.status_code == 500
    assert response.json()["error"] == "the GPU has fallen off the bus"

    def bug(batch, names=()):
        raise KeyError("DOE^JOHN")

    monkeypatch.setattr(server.engine, "run_outputs", bug)
    response = httpx.post(
        f"{server.url}/v1/classify", content=(examples / "phantom-1.jpg").read_bytes(), timeout=TIMEOUT_S
    )
    assert response.status_code == 500
    assert "log" in response.json()["error"]
    assert "internal error: KeyError in bug" in server.lines
    assert "DOE" not in server.lines + response.text


def test_probabilities_that_are_not_finite_are_refused(held, monkeypatch, ask):
    server = held(released=True)
    monkeypatch.setattr(server.engine, "run", lambda batch: np.full((len(batch), 2), np.nan, np.float32))
    response = ask(server)
    assert response.status_code == 500
    assert "not finite" in response.json()["error"]
