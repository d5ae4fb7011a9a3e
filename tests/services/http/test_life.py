"""Start, readiness, and the end of the server, as a real process."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

httpx = pytest.importorskip("httpx")

import mri_edge.bundles.bundle as bundles
from mri_edge.bundles.bundle import Bundle

TIMEOUT_S = 120


def test_probes_are_answered_while_the_model_is_opened_and_checked(held, monkeypatch):
    from mri_edge.inference.replay import Report
    from mri_edge.services.http import models

    checking = threading.Event()

    def wait(bundle, opened):
        assert checking.wait(TIMEOUT_S)
        return Report(())

    monkeypatch.setattr(models, "replay", wait)
    server = held(released=True, wait=False)
    with httpx.Client(base_url=server.url, timeout=TIMEOUT_S) as client:
        assert client.get("/v2/health/live").status_code == 200
        assert client.get("/v2/health/ready").status_code == 503
        assert client.get("/v2/models/small/ready").json() == {"name": "small", "ready": False}
        refused = client.post("/v1/classify", content=b"x")
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert client.post("/v2/models/small/infer", content=b"{}").status_code == 503
        assert "mri_edge_ready" in client.get("/metrics").text
        checking.set()
        server.wait_until(lambda: client.get("/v2/health/ready").status_code == 200)


def test_a_model_that_does_not_give_its_golden_values_is_not_served(tmp_path, serve):
    import hashlib

    import numpy as np

    folder = tmp_path / "changed"
    shutil.copytree(Bundle.open("small").folder, folder)
    with np.load(folder / "golden.npz") as file:
        arrays = dict(file)
    for name in arrays:
        if name.startswith("probabilities"):
            arrays[name] = arrays[name][:, ::-1]
    np.savez_compressed(folder / "golden.npz", **arrays)
    manifest = json.loads((folder / "manifest.json").read_text())
    content = (folder / "golden.npz").read_bytes()

    def update(value):
        if isinstance(value, dict):
            if value.get("file") == "golden.npz":
                value |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            for member in value.values():
                update(member)
        elif isinstance(value, list):
            for member in value:
                update(member)

    update(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    server = serve("--model", str(folder))
    server.wait_for("does not give its golden values")
    assert server.process.wait(TIMEOUT_S) == 4
    assert "mri-edge verify" in server.log


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model", "no-such-bundle"], 3, "no-such-bundle"),
        (["--model", "small", "--model", "small"], 2, "two models have the name small"),
        (["--host", "0.0.0.0"], 2, "other machines could reach the server"),
        (["--tls-cert", "x.pem"], 2, "belong together"),
        (["--token-file", "/nonexistent"], 2, "cannot read the token"),
        (["--tls-cert", "/nonexistent", "--tls-key", "/nonexistent"], 2, "not a certificate"),
        (["--host", "192.0.2.1", "--token-file", "token"], 2, "cannot listen on 192.0.2.1"),
        (["--engine", "nothing", "--model", "small"], 2, "nothing"),
    ],
)
def test_wrong_usage_ends_with_one_line(serve, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    Path("token").write_text("0123456789abcdef")
    server = serve(*arguments)
    assert server.end(0) == code
    assert message in server.log
    assert "Traceback" not in server.log
    assert server.log.count("mri-edge: error: ") == 1


def test_a_port_that_is_taken_is_refused(serve):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = serve("--model", "small", "--port", str(taken.getsockname()[1]))
        assert server.end(0) == 2
    assert "cannot listen on 127.0.0.1" in server.log


def test_a_missing_extra_is_refused_in_one_line(tmp_path):
    code = (
        "import sys; sys.modules['uvicorn'] = None\n"
        "from mri_edge.cli import run; sys.exit(run(['serve', '--model', 'small']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install 'mri-edge[serve]'" in done.stderr


def test_help_shows_examples_and_every_option():
    done = subprocess.run(
        [sys.executable, "-m", "mri_edge", "serve", "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=TIMEOUT_S,
    )
    assert "mri-edge serve --model lite --model ./bundle" in done.stdout
    assert "not a medical device" in done.stdout


@pytest.mark.parametrize("keep_alive", [True, False])
def test_sigterm_answers_every_request_that_was_accepted(serve, examples, keep_alive):
    server = serve("--model", "small", "--queue", "200")
    url = server.wait_until_ready()
    file = (examples / "phantom-1.jpg").read_bytes()
    answered, lost, started = [], [], threading.Event()

    def ask():
        with httpx.Client(base_url=url, timeout=TIMEOUT_S) as client:
            while True:
                try:
                    response = (
                        client.post("/v1/classify", content=file)
                        if keep_alive
                        else httpx.post(f"{url}/v1/classify", content=file, timeout=TIMEOUT_S)
                    )
                except httpx.ConnectError:
                    return  # the server accepts no more
                except httpx.TransportError as error:
                    lost.append(repr(error))
                    return
                answered.append(response.status_code)
                if len(answered) > 40:
                    started.set()

    clients = [threading.Thread(target=ask) for _ in range(8)]
    for client in clients:
        client.start()
    assert started.wait(TIMEOUT_S)
    assert server.end() == 0
    for client in clients:
        client.join(TIMEOUT_S)
    assert lost == []
    assert set(answered) == {200}
    assert "stopped" in server.log


def test_sigterm_waits_for_long_work_and_closes_its_connection(serve, examples, zip_of):
    server = serve("--model", "small", "--timeout", "600")
    url = server.wait_until_ready()
    scan = (examples / "phantom-1.jpg").read_bytes()
    many = zip_of([(f"{number}.jpg", scan) for number in range(600)])
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, f"{url}/v1/classify", content=many, timeout=TIMEOUT_S)
        while 'mri_edge_in_progress{model="small"} 1.0' not in httpx.get(f"{url}/metrics", timeout=TIMEOUT_S).text:
            assert not answer.done()
        server.process.terminate()
        response = answer.result(TIMEOUT_S)
    assert response.status_code == 200
    assert len(response.json()["results"]) == 600
    assert response.headers["Connection"] == "close"
    assert server.end(0) == 0  # a second signal could arrive while Python ends


def test_ctrl_c_ends_the_server_with_130(serve):
    server = serve("--model", "small")
    server.wait_until_ready()
    assert server.end(signal.SIGINT) == 130
    assert "Traceback" not in server.log


def test_systemd_is_told_when_the_server_is_ready(serve, tmp_path):
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(address))
        listener.settimeout(TIMEOUT_S)
        server = serve("--model", "small", env={"NOTIFY_SOCKET": str(address)})
        received = set()
        while b"READY=1" not in received:
            received.add(listener.recv(100))
        assert httpx.get(f"{server.url}/v2/health/ready", timeout=TIMEOUT_S).status_code == 200
        server.process.terminate()
        while b"STOPPING=1" not in received:
            received.add(listener.recv(100))
    assert server.end() == 0


def test_the_server_imports_neither_training_nor_readers_that_no_request_needs(serve, examples):
    server = serve("--model", "small")
    scan = (examples / "phantom-1.jpg").read_bytes()
    assert httpx.post(f"{server.wait_until_ready()}/v1/classify", content=scan, timeout=TIMEOUT_S).status_code == 200
    memory = Path(f"/proc/{server.process.pid}/maps")
    if not memory.exists():
        pytest.skip("needs /proc")
    assert not re.search(r"tensorflow|torch|/sklearn/|/scipy/|/gdcm/", memory.read_text())


def test_the_default_model_is_the_one_of_predict(serve):
    server = serve()
    assert "lite" in httpx.get(f"{server.wait_until_ready()}/v2/models/lite/ready", timeout=TIMEOUT_S).text
    assert bundles.DEFAULT_MODEL == "lite"
