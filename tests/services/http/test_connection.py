"""A refused client reads its answer although it is still sending, and what it sends is bounded."""

from __future__ import annotations

import asyncio
import http.client
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

httpx = pytest.importorskip("httpx")

from mri_edge.services.http import connection
from mri_edge.services.http.limits import Limits
from mri_edge.services.http.server import Address

INFER = "/v2/models/small/infer"
TIMEOUT_S = 120
TOKEN = "0123456789abcdef0123456789abcdef"
BODY = bytes(8 << 20)  # more than the buffers of both sockets

# What is wrong with the headers: path, headers, status.
REFUSALS = {
    "JSON of one byte": (INFER, {"Inference-Header-Content-Length": "1"}, 400),
    "no number": (INFER, {"Inference-Header-Content-Length": "x"}, 400),
    "no such model": ("/v2/models/none/infer", {}, 404),
    "wrong method": ("/v2", {}, 405),
    "another host": (INFER, {"Host": "evil.example"}, 421),
    "another site": (INFER, {"Origin": "http://evil.example"}, 403),
    "compressed": (INFER, {"Content-Encoding": "gzip"}, 415),
    "wrong option": ("/v1/classify?by=patient", {}, 400),
    "unknown option": ("/v1/classify?heatmaps=1", {}, 400),
    "too large": ("/v1/classify", {}, 413),
}


def send_slowly(sock, body):
    """Send the headers first and the body piece by piece, as clients do that read the answer only afterwards."""
    for start in range(0, len(body), 1 << 20):
        sock.sendall(body[start : start + (1 << 20)])


def answer_of(port, path, headers, body=BODY, context=None):
    """Send a request completely, and only then read the status of the answer."""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as plain:
        sock = context.wrap_socket(plain, server_hostname="localhost") if context else plain
        lines = {"Host": "localhost", "Content-Length": str(len(body)), **headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        sock.sendall(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode())
        send_slowly(sock, body)
        response = http.client.HTTPResponse(sock, method="POST")
        response.begin()
        content = response.read()
        assert len(content) == int(response.headers["Content-Length"])
        return response.status


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refused_client_that_still_sends_reads_its_answer(held, name):
    path, headers, status = REFUSALS[name]
    server = held(Limits(upload_bytes=(1 if status == 413 else 16) << 20), released=True)
    assert [answer_of(server.port, path, headers) for _ in range(20)] == [status] * 20
    server.wait_until(lambda: not server.server.server_state.connections)


def test_a_refused_client_that_still_sends_reads_its_answer_over_tls(serve, certificate, tmp_path):
    token = tmp_path / "token"
    token.write_text(TOKEN)
    cert, key = map(str, certificate)
    process = serve("--model", "small", "--token-file", str(token), "--tls-cert", cert, "--tls-key", key)
    port = int(process.url.rpartition(":")[2])
    context = ssl.create_default_context(cafile=cert)
    assert [answer_of(port, INFER, {}, context=context) for _ in range(5)] == [401] * 5
    assert process.end() == 0


def test_what_cannot_be_parsed_is_answered_while_more_arrives(held):
    server = held(released=True)
    for _ in range(10):
        with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as sock:
            sock.sendall(b"\x16\x03\x01 no HTTP\r\n\r\n")
            send_slowly(sock, BODY)
            assert sock.recv(1000).startswith(b"HTTP/1.1 400 ")


def test_a_connection_is_kept_after_a_refusal_that_came_before_the_body(held, images, binary):
    server = held(Limits(queue=1))
    body, headers = binary(images)
    with ThreadPoolExecutor(1) as pool, socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as sock:
        first = pool.submit(httpx.post, server.url + INFER, content=body, headers=headers, timeout=TIMEOUT_S)
        assert server.engine.running.wait(TIMEOUT_S)
        sock.sendall(f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(BODY)}\r\n\r\n".encode())
        send_slowly(sock, BODY + b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answers = everything(sock)
        server.engine.released.set()
        assert first.result(TIMEOUT_S).status_code == 200
    assert answers.startswith(b"HTTP/1.1 429 ")
    assert b"HTTP/1.1 200 " in answers


def everything(sock):
    """Return what arrives until the server closes or resets the connection."""
    received = b""
    try:
        while piece := sock.recv(1 << 16):
            received += piece
    except ConnectionResetError:
        pass
    return received


def asking(server, request, header):
    """Return a connection on which a request with this header was sent."""
    sock = socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S)
    sock.sendall(request + b" HTTP/1.1\r\nHost: localhost\r\n" + header + b"\r\n\r\n")
    return sock


def refused_chunks(server):
    """Return a connection with the headers of a request that is refused before its body."""
    return asking(server, b"POST /none", b"Transfer-Encoding: chunked")


def wait_until_closed(server):
    server.wait_until(lambda: not server.server.server_state.connections)


def test_the_rest_of_a_refused_body_is_bounded_in_bytes(held, monkeypatch):
    monkeypatch.setattr(connection, "LINGER_BYTES", 1 << 20)
    server = held(released=True)
    with refused_chunks(server) as sock, pytest.raises(ConnectionError):
        for _ in range(1000):
            sock.sendall(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
    wait_until_closed(server)


def test_the_rest_of_a_refused_body_is_bounded_in_time(held, monkeypatch):
    monkeypatch.setattr(connection, "LINGER_S", 0.3)
    server = held(released=True)
    with refused_chunks(server) as sock:
        assert everything(sock).startswith(b"HTTP/1.1 404 ")
        wait_until_closed(server)


@pytest.mark.parametrize("bound", ["LINGER_BYTES", "LINGER_S"])
def test_the_rest_of_a_refused_body_is_bounded_where_the_connection_is_kept(held, images, binary, monkeypatch, bound):
    monkeypatch.setattr(connection, bound, 0.3)
    server = held(Limits(queue=1))
    body, headers = binary(images)
    with ThreadPoolExecutor(1) as pool, socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as sock:
        first = pool.submit(httpx.post, server.url + INFER, content=body, headers=headers, timeout=TIMEOUT_S)
        assert server.engine.running.wait(TIMEOUT_S)
        sock.sendall(f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n".encode())
        assert sock.recv(1 << 16).startswith(b"HTTP/1.1 429 ")
        with pytest.raises(ConnectionError):
            while True:
                sock.sendall(b"x")
                time.sleep(0.01)
        server.engine.released.set()
        assert first.result(TIMEOUT_S).status_code == 200


def test_line_ends_do_not_keep_a_connection_open(held, monkeypatch):
    monkeypatch.setattr(connection, "HEADERS_S", 0.3)
    server = held(released=True)
    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as sock:
        sock.sendall(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert sock.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        sock.sendall(b"\r\n")
        wait_until_closed(server)


OFFERS = {
    "HTTP/2": "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
    "two lines": "Connection: keep-alive\r\nUPGRADE: h2c\r\nUpgrade: websocket, foo/2\r\nConnection: upgrade\r\n",
}


@pytest.mark.parametrize("step", [1, 50, 1 << 20])  # bytes that are sent at a time
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("offer", OFFERS)
def test_an_offer_of_another_protocol_is_ignored(held, images, binary, caplog, offer, chunked, step):
    server = held(released=True)
    body, headers = binary(images[:1])
    lines = {"Host": "localhost", **headers}
    if chunked:
        lines["Transfer-Encoding"] = "chunked"
        sent = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    else:
        lines["Content-Length"] = str(len(body))
        sent = body
    fields = OFFERS[offer] + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    head = f"POST {INFER} HTTP/1.1\r\n{fields}\r\n".encode()
    get = f"GET /v2 HTTP/1.1\r\nHost: localhost\r\n{OFFERS[offer]}\r\n".encode()
    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(head), step):
            sock.sendall(head[start : start + step])
        sock.sendall(sent + get + get + b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answers = everything(sock)
    assert answers.count(b"HTTP/1.1 200 ") == answers.count(b"HTTP/1.1 ") == 4
    assert b'"probabilities"' in answers
    assert "websockets" not in caplog.text


def test_any_number_of_offers_is_ignored(held):
    server, number = held(released=True), 1000
    request = b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), TIMEOUT_S) as sock:
        sock.sendall(request * number + b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert everything(sock).count(b"HTTP/1.1 200 ") == number + 1


LARGE = bytes(64 << 20)  # more than the buffers of both sockets


@pytest.fixture
def large_answers(held, monkeypatch):
    """A server that answers every request with ``LARGE``, to clients that must receive some of it in a second."""

    async def answer(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(LARGE))]})
        await send({"type": "http.response.body", "body": LARGE})
        await send({"type": "http.response.body", "body": b""})  # as a streamed answer: it waits for the client

    monkeypatch.setattr(connection, "READING_S", 1.0)
    server = held(released=True)
    monkeypatch.setattr(server.server.config, "loaded_app", answer)
    return server


def test_a_client_that_never_reads_its_answer_is_disconnected(large_answers):
    with asking(large_answers, b"GET /", b"Connection: close") as sock:
        assert sock.recv(1, socket.MSG_PEEK)
        wait_until_closed(large_answers)
        assert len(everything(sock)) < len(LARGE)


def test_a_client_that_reads_slowly_gets_its_whole_answer(large_answers, monkeypatch):
    monkeypatch.setattr(connection, "READING_S", 3.0)  # thirty pauses of the client, for a busy machine
    received, start = 0, time.monotonic()
    with asking(large_answers, b"GET /", b"Connection: close") as sock:
        while piece := sock.recv(1 << 20):
            received += len(piece)
            time.sleep(0.1)
    assert received > len(LARGE)
    assert time.monotonic() - start > 2 * connection.READING_S
    wait_until_closed(large_answers)


@pytest.fixture
def small_buffers(held, monkeypatch):
    """A server that sends some KiB to a client that does not read, and whose clients must read some in a second."""
    connection_made = connection.BoundedConnection.connection_made

    def with_small_buffer(self, transport):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        connection_made(self, transport)

    async def answer(scope, receive, send):
        size = int(scope["path"][1:])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
        await send({"type": "http.response.body", "body": bytes(size)})

    monkeypatch.setattr(connection.BoundedConnection, "connection_made", with_small_buffer)
    monkeypatch.setattr(connection, "READING_S", 1.0)
    monkeypatch.setattr(connection, "HEADERS_S", 0.5)
    server = held(released=True)
    monkeypatch.setattr(server.server.config, "loaded_app", answer)
    monkeypatch.setattr(server.server.config, "timeout_keep_alive", 1)
    return server


# uvicorn stops to send at 64 KiB that the client has not received, and goes on at 16 KiB.
@pytest.mark.parametrize(("size", "received"), [(48 << 10, 0), (100 << 10, 0), (100 << 10, 78 << 10)])
@pytest.mark.parametrize("then", [b"Connection: close\r\n\r\n", b"\r\n", b"\r\n\r\n"])
def test_a_client_that_does_not_read_the_end_of_an_answer_is_disconnected(small_buffers, size, received, then):
    """Whether the connection is closed behind the answer, or later, because no other request arrives."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", small_buffers.port))
        sock.sendall(b"GET /%d HTTP/1.1\r\nHost: localhost\r\n" % size + then)
        sock.settimeout(TIMEOUT_S)
        assert sock.recv(1, socket.MSG_PEEK)
        left = received
        while left > 0:
            left -= len(sock.recv(left))
        wait_until_closed(small_buffers)


@pytest.mark.parametrize("then", [b"Connection: close\r\n\r\n", b"\r\n"])
def test_a_client_gets_the_end_of_its_answer_after_the_server_has_closed(small_buffers, then):
    size, start = 48 << 10, time.monotonic()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", small_buffers.port))
        sock.sendall(b"GET /%d HTTP/1.1\r\nHost: localhost\r\n" % size + then)
        received = 0
        while piece := sock.recv(2 << 10):
            received += len(piece)
            time.sleep(0.15)
    assert received > size
    assert time.monotonic() - start > 2 * connection.READING_S


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_small_writes_are_sent_at_once(host):
    """With Nagle's algorithm the second write of an answer waits about 40 ms for the client's acknowledgement."""

    async def accepted() -> int:
        delays = asyncio.get_running_loop().create_future()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            server_side = writer.get_extra_info("socket")
            delays.set_result(server_side.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with Address(host, 0).listen() as listener:
            async with await asyncio.start_server(connected, sock=listener):
                with socket.create_connection(listener.getsockname()[:2], TIMEOUT_S):
                    return await delays

    assert asyncio.run(accepted())
