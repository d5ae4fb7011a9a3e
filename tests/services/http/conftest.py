"""Servers for the tests: the real command in a process, and the application with a fake engine in a thread."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("uvicorn")

import httpx
import uvicorn

from mri_edge.bundles.bundle import Bundle
from mri_edge.inference.classifier import Classifier
from mri_edge.services.http.app import App, create_app
from mri_edge.services.http.connection import BoundedConnection
from mri_edge.services.http.limits import Limits
from mri_edge.services.http.logs import Log
from mri_edge.services.http.server import _Server
from mri_edge.testing import FakeEngine

PATIENCE_S = 120.0  # CI machines are slow


class Process:
    """``mri-edge serve`` in a process of its own, with its lines on stderr."""

    def __init__(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mri_edge", "serve", "--port", "0", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self.lines.append("")  # the end
            self._changed.notify_all()

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Return the match in the log as soon as there is one."""
        with self._changed:
            found = self._changed.wait_for(lambda: re.search(pattern, self.log) or "" in self.lines, PATIENCE_S)
            match = re.search(pattern, self.log)
        assert found, f"no {pattern!r} in time:\n{self.log}"
        assert match, f"no {pattern!r}:\n{self.log}"
        return match

    @property
    def url(self) -> str:
        return self.wait_for(r"listening on (https?://[^\s\"]+)")[1]

    def wait_until_ready(self, **options: Any) -> str:
        """Return the address when all models are ready."""
        url = self.url
        until = time.monotonic() + PATIENCE_S
        while httpx.get(f"{url}/v2/health/ready", timeout=PATIENCE_S, **options).status_code != 200:
            assert time.monotonic() < until, self.log
            time.sleep(0.05)
        return url

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return code


@pytest.fixture
def serve() -> Iterator[Callable[..., Process]]:
    """Start a server with these options; it ends with the test."""
    started: list[Process] = []

    def start(*arguments: str, env: dict[str, str] | None = None) -> Process:
        started.append(Process(*arguments, env=env))
        return started[-1]

    yield start
    for process in started:
        process.end(signal.SIGKILL)


@pytest.fixture(scope="session")
def server() -> Iterator[Process]:
    """One server of the embedded model ``small`` for all tests that do not change it."""
    process = Process("--model", "small", "--log-format", "json")
    process.wait_until_ready()
    yield process
    assert process.end() == 0


@pytest.fixture
def client(server: Process) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=PATIENCE_S) as client:
        yield client


def make_certificate(folder: Path, *protection: str) -> tuple[Path, Path]:
    """Make a certificate for localhost and its key, which openssl's options ``protection`` may encrypt."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", *protection, "-keyout", key, "-out", certificate]
    subject = ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    try:
        subprocess.run([*make, *subject], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs openssl")
    return certificate, key


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for localhost and its key."""
    return make_certificate(tmp_path_factory.mktemp("tls"), "-nodes")


@pytest.fixture(scope="session")
def small() -> Iterator[Classifier]:
    with Classifier.load("small") as classifier:
        yield classifier


class HeldEngine(FakeEngine):
    """A fake engine that waits in ``run`` until it is released, and records the size of each batch."""

    def __init__(self, size: tuple[int, ...]) -> None:
        super().__init__(size)
        self.released = threading.Event()
        self.running = threading.Event()
        self.batches: list[int] = []

    def run(self, batch: Any) -> Any:
        self.batches.append(len(batch))
        self.running.set()
        assert self.released.wait(PATIENCE_S)
        return super().run(batch)


class InThread:
    """The application with a held engine, served in a thread of the test; over TLS with a certificate and its key."""

    def __init__(
        self,
        engine: FakeEngine,
        limits: Limits,
        *,
        wait: bool = True,
        tls: tuple[Path | None, Path | None] = (None, None),
        **options: Any,
    ) -> None:
        bundle = Bundle.open("small")
        artifact = bundle.manifest.artifacts[0]

        def load(bundle: Bundle) -> Classifier:
            return Classifier(bundle, artifact, engine, batch_size=8)

        self.engine = engine
        self.log = Log("json", stream=_Sink())
        self.app: App = create_app([bundle], load, limits=limits, log=self.log, **options)
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            self.app,
            log_config=None,
            access_log=False,
            lifespan="on",
            ws="none",
            http=BoundedConnection,
            ssl_certfile=tls[0],
            ssl_keyfile=tls[1],
        )
        self.server = _Server(config, self.app) if any(tls) else uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self.server._serve([listener])), daemon=True)
        self._thread.start()
        if wait:
            self.wait_until(lambda: all(model.ready for model in self.app.models.values()))

    @property
    def lines(self) -> str:
        stream = self.log._stream
        assert isinstance(stream, _Sink)
        return stream.text

    def wait_until(self, condition: Callable[[], bool]) -> None:
        until = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < until, self.lines
            time.sleep(0.01)

    def close(self) -> None:
        if isinstance(self.engine, HeldEngine):
            self.engine.released.set()
        self.server.should_exit = True
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


class _Sink:
    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., InThread]]:
    """Start a server whose engine waits. Its golden values are not replayed: a fake engine has other answers."""
    from mri_edge.inference.replay import Report
    from mri_edge.services.http import models

    monkeypatch.setattr(models, "replay", lambda bundle, opened: Report(()))
    started: list[InThread] = []

    def start(limits: Limits = Limits(), *, released: bool = False, **options: Any) -> InThread:  # noqa: B008
        engine = HeldEngine((128, 128, 3))
        engine.released.set()  # for the picture that warms it up
        started.append(InThread(engine, limits, **options))
        engine.batches.clear()
        engine.running.clear()
        if not released:
            engine.released.clear()
        return started[-1]

    yield start
    for server in started:
        server.close()


def tensor_body(images: np.ndarray, **request: Any) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers of a binary request."""
    import json

    data = images.tobytes()
    tensor = {"name": "image", "shape": list(images.shape), "datatype": "UINT8"}
    tensor["parameters"] = {"binary_data_size": len(data)}
    header = json.dumps({"inputs": [tensor], **request}).encode()
    return header + data, {"Inference-Header-Content-Length": str(len(header))}


@pytest.fixture
def images() -> np.ndarray:
    """Three tensors of the size of ``small``, uint8 (3, 128, 128, 3)."""
    return np.random.default_rng(7).integers(0, 256, (3, 128, 128, 3), dtype=np.uint8)


@pytest.fixture
def binary() -> Callable[..., tuple[bytes, dict[str, str]]]:
    return tensor_body


@pytest.fixture
def examples() -> Path:
    return Path(__file__).resolve().parents[3] / "examples"


@pytest.fixture
def zip_of() -> Callable[[Sequence[tuple[str, bytes]]], bytes]:
    """Return a function that packs names and contents."""
    import io
    import zipfile

    def pack(files: Sequence[tuple[str, bytes]]) -> bytes:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files:
                archive.writestr(name, content)
        return packed.getvalue()

    return pack
