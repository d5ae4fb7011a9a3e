"""Tokens, TLS, headers, other sites, and logs without anything that names a patient."""

from __future__ import annotations

import io
import json
import re
import ssl
from pathlib import Path

import pytest

httpx = pytest.importorskip("httpx")

from mri_edge.services.http.security import Guard, is_loopback

from .conftest import make_certificate

TOKEN = "0123456789abcdef-0123456789abcdef"
TIMEOUT_S = 120


@pytest.fixture
def token_file(tmp_path: Path) -> str:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    return str(path)


def test_every_answer_protects_a_browser(client):
    for path in ("/", "/docs", "/v2", "/nothing", "/metrics"):
        headers = client.get(path).headers
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
        assert "unsafe" not in policy
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "Server" not in headers
        assert "Access-Control-Allow-Origin" not in headers


def test_a_token_is_needed_for_everything_but_probes_and_the_page(serve, token_file, examples):
    server = serve("--model", "small", "--host", "0.0.0.0", "--token-file", token_file)
    port = server.url.rpartition(":")[2]
    server.wait_for("golden values reproduced")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT_S) as client:
        for path in ("/v2/health/live", "/v2/health/ready", "/", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 200, path
        file = (examples / "phantom-1.jpg").read_bytes()
        for header in (
            None,
            TOKEN,
            f"Bearer {TOKEN}x",
            f"Bearer {TOKEN[:-1]}",
            "Bearer",
            f"Basic {TOKEN}",
            "Bearer \xe4",
        ):
            headers = {} if header is None else {"Authorization": header.encode("latin-1")}
            for method, path in (
                ("POST", "/v1/classify"),
                ("GET", "/v2"),
                ("GET", "/v2/models/small"),
                ("GET", "/metrics"),
                ("POST", "/v2/models/small/infer"),
                ("GET", "/nothing"),
            ):
                response = client.request(method, path, content=file, headers=headers)
                assert response.status_code == 401, (header, path)
                assert response.headers["WWW-Authenticate"].startswith("Bearer")
                assert TOKEN not in response.text
        for scheme in ("Bearer", "bearer"):
            headers = {"Authorization": f"{scheme} {TOKEN}"}
            assert client.post("/v1/classify", content=file, headers=headers).status_code == 200
        # With a token any host name is allowed: a proxy passes the name of the outside.
        assert (
            client.get("/v2", headers={"Authorization": f"Bearer {TOKEN}", "Host": "pacs.example"}).status_code == 200
        )
    assert server.end() == 0
    assert TOKEN not in server.log


@pytest.mark.parametrize(
    "content", ["short", "with a space in the token", "\u00e4" * 20, "0123456789abcdef\n0123456789"]
)
def test_weak_tokens_are_refused(serve, tmp_path, content):
    (tmp_path / "weak").write_text(content, encoding="utf-8")
    server = serve("--model", "small", "--token-file", str(tmp_path / "weak"))
    assert server.end(0) == 2
    assert "openssl rand -hex 32" in server.log
    assert content not in server.log


def test_an_encrypted_key_is_refused_and_no_pass_phrase_is_asked_for(serve, tmp_path):
    certificate, key = make_certificate(tmp_path, "-passout", "pass:secret")
    server = serve("--model", "small", "--tls-cert", str(certificate), "--tls-key", str(key))
    assert server.end(0) == 2
    assert "pass phrase:" not in server.log
    assert server.log.count("\n") <= 1
    assert "without a pass phrase" in server.log


def test_tls(serve, certificate, examples):
    certificate, key = certificate
    server = serve("--model", "small", "--host", "0.0.0.0", "--tls-cert", str(certificate), "--tls-key", str(key))
    assert server.url.startswith("https://")
    port = server.url.rpartition(":")[2]
    server.wait_for("golden values reproduced")
    context = ssl.create_default_context(cafile=str(certificate))
    with httpx.Client(base_url=f"https://localhost:{port}", verify=context, timeout=TIMEOUT_S) as client:
        file = (examples / "phantom-1.jpg").read_bytes()
        assert client.post("/v1/classify", content=file).status_code == 200
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://localhost:{port}/v2", timeout=TIMEOUT_S)
    assert server.end() == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LocalHost:1", "[::1]", "127.0.0.2:99"])
def test_names_of_this_machine_are_allowed(client, host):
    assert client.get("/v2", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", ""])
def test_a_host_name_that_was_pointed_at_this_machine_is_refused(client, host):
    response = client.get("/v2", headers={"Host": host})
    assert response.status_code == 421
    assert "Host" in response.json()["error"]


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1"])
def test_pages_of_other_sites_are_refused(client, origin):
    assert client.post("/v1/classify", content=b"x", headers={"Origin": origin}).status_code == 403
    own = str(client.base_url).rstrip("/")
    assert client.get("/v2", headers={"Origin": own}).status_code == 200


def test_a_token_is_compared_in_constant_time(monkeypatch):
    import hmac

    compared = []
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    Guard(b"x" * 16, local=False).check("/v2", {b"authorization": b"Bearer " + b"x" * 16})
    assert compared == [(b"x" * 16, b"x" * 16)]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("10.0.0.1", False),
        ("", False),
        ("0.0.0.0", False),
        ("::", False),
    ],
)
def test_loopback(host, expected):
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    "path", ["/page/../app.py", "/page/%2e%2e/app.py", "/page/..%2fapp.py", "/page//etc/passwd", "/page/\\..\\app.py"]
)
def test_the_page_folder_cannot_be_left(server, path):
    import http.client

    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=TIMEOUT_S)
    connection.request("GET", path)
    response = connection.getresponse()
    assert response.status == 404
    assert b"create_app" not in response.read()


NAME = "DOE^JANE"


def test_logs_are_json_and_hold_nothing_that_names_a_patient(serve, examples, zip_of):
    pydicom = pytest.importorskip("pydicom")
    server = serve("--model", "small", "--log-format", "json", "-v")
    url = server.wait_until_ready()
    header = pydicom.dcmread(examples / "dicom" / "mni152-slice-2.dcm")
    header.PatientName, header.PatientID = NAME, f"{NAME}-1"
    content = io.BytesIO()
    header.save_as(content)
    scan = content.getvalue()
    with httpx.Client(base_url=url, timeout=TIMEOUT_S) as client:
        for body in (
            scan,
            scan[:700],
            scan[:-1000],
            scan.replace(b"1.2.840.10008.1.2", b"1.2.840.10008.9.9"),
            NAME.encode(),
        ):
            for query in ("", "?by=series", f"?by={NAME}", f"?model={NAME}", f"?{NAME}={NAME}"):
                client.post(f"/v1/classify{query}", content=body)
                client.post(f"/v1/classify{query}", files={NAME: (f"{NAME}.dcm", body)})
                client.post(f"/v1/classify{query}", content=zip_of([(f"{NAME}/{NAME}.dcm", body)]))
            client.post("/v2/models/small/infer", content=body)
            client.post("/v2/models/small/infer", json={"id": NAME, NAME: NAME, "inputs": [{"name": NAME}]})
        client.get(f"/{NAME}")
        client.request("SEARCH", f"/page/{NAME}", headers={"X-Name": NAME, "Authorization": NAME, "User-Agent": NAME})
        metrics = client.get("/metrics").text
    assert server.end() == 0
    lines = [line for line in server.lines if line]
    records = [json.loads(line) for line in lines]
    assert len(records) > 80
    assert all({"time", "level"} <= set(record) for record in records)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record["time"]) for record in records)
    for text in (server.log, metrics):
        assert "DOE" not in text
        assert "JANE" not in text
        assert ".dcm" not in text
    assert {"other", "POST", "GET"} <= {record.get("method") for record in records}
    assert not any("internal error" in record.get("message", "") for record in records)


def test_requests_that_are_no_http_are_refused(server):
    import socket

    host, port = server.url.removeprefix("http://").split(":")
    for noise in (b"\0" * 100, b"\x16\x03\x01\x02\0" + bytes(200), b"GET / HTTP/9\r\n\r\n", b"\xff" * 70_000):
        with socket.create_connection((host, int(port))) as connection:
            connection.settimeout(TIMEOUT_S)
            try:
                connection.sendall(noise)
                answer = connection.recv(100)
            except ConnectionError:
                continue
            assert answer == b"" or b" 400 " in answer
