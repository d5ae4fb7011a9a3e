"""Send a server very many requests, a fifth of them damaged, disconnect, and stop it under load; check every answer.

    python -m benchmarks.server_campaign                      # 100,000 requests
    python -m benchmarks.server_campaign --requests 2000      # a minute

Exit code 1: an answer is wrong or missing, or the memory grew by more than 3% between 20% and 100% of the requests.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compare.load import binary_body
from benchmarks.processes import ENVIRONMENT, SCANS, free_port, program, resident_bytes
from mri_edge import Classifier
from mri_edge.inference.prediction import Prediction

WORKERS = 8
MODEL = "small"
INFER, CLASSIFY = f"/v2/models/{MODEL}/infer", "/v1/classify"
GARBAGE = 0.2
TOLERANCE = 1e-3  # of a probability: the batch in which a picture runs may change its last digits
GROWTH = 0.03
BUSY = (429, 503)  # refusals of a good request
TIMEOUT_S = 120.0
KILLS = 5  # of each signal
OK = "answered"


@dataclass(frozen=True)
class Ask:
    """A request, and the check of its answer: it gets the status and the body, and returns whether they are right."""

    name: str
    path: str
    body: bytes
    headers: dict[str, str]
    check: Callable[[int, bytes], bool]


def good_requests() -> list[Ask]:
    """Return requests with known answers."""
    found = []
    with Classifier.load(MODEL) as classifier:
        for scan in SCANS:
            expected = classifier.predict(scan)
            assert isinstance(expected, Prediction)
            found.append(Ask("picture", CLASSIFY, scan.read_bytes(), {}, _is_prediction(expected)))
        size = classifier.bundle.manifest.preprocessing
        rng = np.random.default_rng(7)
        for count in (1, 3):
            for _ in range(3):
                images = rng.integers(0, 256, (count, size.height, size.width, 3), np.uint8)
                probabilities, _ = classifier.predict_tensors(images)
                body, headers = binary_body(images)
                found.append(Ask("tensors", INFER, body, headers, _is_probabilities(probabilities)))
    return found


def _is_prediction(expected: Prediction) -> Callable[[int, bytes], bool]:
    def check(status: int, body: bytes) -> bool:
        if status in BUSY:
            return True
        answer = json.loads(body)
        known = expected.to_dict()["probabilities"]
        if status != 200 or answer["label"] != expected.label or answer["probabilities"].keys() != known.keys():
            return False
        return all(abs(answer["probabilities"][label] - value) < TOLERANCE for label, value in known.items())

    return check


def _is_probabilities(expected: np.ndarray) -> Callable[[int, bytes], bool]:
    def check(status: int, body: bytes) -> bool:
        if status in BUSY:
            return True
        if status != 200:
            return False
        header, end = json.JSONDecoder().raw_decode(body.decode("latin-1"))
        shape = header["outputs"][0]["shape"]
        found = np.frombuffer(body, "<f4", int(np.prod(shape)), end).reshape(shape)
        return np.allclose(found, expected, atol=TOLERANCE)

    return check


def garbage_requests(good: list[Ask]) -> list[Ask]:
    """Return requests that must be refused."""

    def refused(status: int, body: bytes) -> bool:
        return 400 <= status < 500 and bool(json.loads(body)["error"])

    picture = SCANS[0].read_bytes()
    tensor = next(ask for ask in good if ask.name == "tensors")
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", bytes(64 << 20))
    wrong = tensor.body.replace(b"UINT8", b"INT32", 1)
    cases: list[tuple[str, bytes, dict[str, str]]] = [
        (CLASSIFY, picture[: len(picture) // 3], {}),
        (CLASSIFY, b"", {}),
        (CLASSIFY, bytes(1000), {}),
        (CLASSIFY, bomb.getvalue(), {}),
        (CLASSIFY, picture, {"Content-Type": "multipart/form-data; boundary=x"}),
        (CLASSIFY, b"x", {"Content-Length": str(10**15)}),
        (CLASSIFY + "?by=patient", picture, {}),
        (INFER, wrong, tensor.headers),
        (INFER, tensor.body[:-1], tensor.headers),
        (INFER, tensor.body, {"Inference-Header-Content-Length": "1"}),
        (INFER, tensor.body, {"Inference-Header-Content-Length": str(10**18)}),
        (INFER, b"[" * 100_000, {}),
        ("/v2/models/none/infer", tensor.body, tensor.headers),
    ]
    return [Ask("garbage", *case, refused) for case in cases]


class Server:
    """``mri-edge serve`` on a fixed port."""

    def __init__(self, port: int, log: Path) -> None:
        self.port = port
        self._log = log.open("a")
        command = program("serve", "--model", MODEL, "--port", port)
        self.process = subprocess.Popen(command, stderr=self._log, env=ENVIRONMENT)
        until = time.monotonic() + TIMEOUT_S
        while self._status() != 200:
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server does not start: see {log}")
            time.sleep(0.1)

    def _status(self) -> int:
        with contextlib.suppress(OSError), contextlib.closing(HTTPConnection("127.0.0.1", self.port)) as client:
            client.request("GET", "/v2/health/ready")
            return client.getresponse().status
        return 0

    def memory(self) -> int:
        """Return the resident memory, bytes."""
        return resident_bytes(self.process.pid)

    def end(self, number: int) -> int:
        """Send a signal, and return the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(TIMEOUT_S)
        self._log.close()
        return code


def exchange(port: int, ask: Ask, *, slow: bool = False) -> str:
    """Send a request on a new connection. Returns ``OK``, "not accepted", "cut off" or "WRONG"."""
    received = False
    try:
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection:
            head = _head(ask)
            if slow:
                for start in range(0, len(ask.body), 8192):
                    connection.sendall((head if start == 0 else b"") + ask.body[start : start + 8192])
                    time.sleep(0.02)
            else:
                connection.sendall(head + ask.body)
            response = HTTPResponse(connection, method="POST")
            response.begin()
            received = True
            body = response.read()
    except (OSError, HTTPException):
        return "cut off" if received else "not accepted"
    if ask.check(response.status, body):
        return OK if response.status == 200 or ask.name == "garbage" else "refused"
    print(f"WRONG: {ask.name} {ask.path}: {response.status} {body[:200]!r}", flush=True)
    return "WRONG"


def _head(ask: Ask) -> bytes:
    headers = {"Host": "localhost", "Connection": "close", "Content-Length": str(len(ask.body)), **ask.headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {ask.path} HTTP/1.1\r\n{lines}\r\n".encode()


def disconnect(port: int, ask: Ask, rng: random.Random) -> str:
    """Close the connection after a part of the request, or before its answer."""
    message = _head(ask) + ask.body
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection:
        connection.sendall(message[: rng.randint(1, len(message))])
        time.sleep(rng.random() * 0.005)
    return "disconnected"


def send_all(server: Server, count: int, good: list[Ask], bad: list[Ask]) -> tuple[Counter[str], list[int]]:
    """Send ``count`` requests. Returns how they ended, and the memory at each percent."""
    outcomes: Counter[str] = Counter()
    memory: list[int] = []
    numbers = iter(range(count))
    lock = threading.Lock()

    def work(seed: int) -> None:
        rng = random.Random(seed)
        while True:
            with lock:
                number = next(numbers, None)
                if number is None:
                    return
                if number % max(1, count // 100) == 0:
                    memory.append(server.memory())
            if number % 100 == 50:
                outcome = disconnect(server.port, rng.choice(good), rng)
            elif rng.random() < GARBAGE:
                outcome = f"garbage {exchange(server.port, rng.choice(bad))}"
            else:
                outcome = exchange(server.port, rng.choice(good), slow=number % 100 == 75)
            with lock:
                outcomes[outcome] += 1

    _in_threads(work)
    memory.append(server.memory())
    return outcomes, memory


def stop_under_load(server: Server, number: int, good: list[Ask]) -> tuple[Counter[str], int]:
    """Send a signal while requests are in progress. Returns how they ended, and the exit code."""
    outcomes: Counter[str] = Counter()
    lock, stopping = threading.Lock(), threading.Event()
    codes: list[int] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        if seed == 0:
            time.sleep(rng.random() + 0.3)
            stopping.set()
            codes.append(server.end(number))
            return
        while True:
            last = stopping.is_set()
            outcome = exchange(server.port, rng.choice(good))
            with lock:
                outcomes[outcome] += 1
            if last and outcome == "not accepted":
                return

    _in_threads(work)
    return outcomes, codes[0]


def _in_threads(work: Callable[[int], None]) -> None:
    with ThreadPoolExecutor(WORKERS) as pool:
        for done in [pool.submit(work, seed) for seed in range(WORKERS)]:
            done.result()  # raises what the thread raised


def run(requests: int, log: Path, kills: int = KILLS) -> dict[str, Any]:
    """Run the campaign, and return its record; ``faults`` must be empty."""
    good = good_requests()
    bad = garbage_requests(good)
    port, start, faults = free_port(), time.monotonic(), []
    server = Server(port, log)
    outcomes, memory = send_all(server, requests, good, bad)
    early = statistics.median(memory[len(memory) * 15 // 100 : len(memory) * 25 // 100 + 1])
    growth = statistics.median(memory[-5:]) / early - 1
    if outcomes.total() != requests:
        faults.append(f"only {outcomes.total()} requests were sent")
    if growth > GROWTH:
        faults.append(f"the memory grew by {growth:.1%}")
    if code := server.end(signal.SIGTERM):
        faults.append(f"exit code {code}")
    allowed = {OK, "refused", "disconnected", f"garbage {OK}"}
    faults += [f"{count} x {name}" for name, count in outcomes.items() if name not in allowed]
    stops = {}
    for name in ("SIGTERM", "SIGKILL"):
        total: Counter[str] = Counter()
        for _ in range(kills):
            stopped, code = stop_under_load(Server(port, log), signal.Signals[name], good)
            total += stopped
            if name == "SIGTERM" and code:
                faults.append(f"exit code {code} after SIGTERM")
        stops[name] = dict(total)
        wrong = ("WRONG", "cut off") if name == "SIGTERM" else ("WRONG",)
        faults += [f"{name}: {total[kind]} x {kind}" for kind in wrong if total[kind]]
    record = {"requests": requests, "seconds": round(time.monotonic() - start), "outcomes": dict(outcomes)}
    memory_record = {"mib_at_20_percent": round(early / 2**20, 1), "growth": round(growth, 4)}
    return record | {"memory": memory_record, "stops": stops, "faults": faults}


def main() -> None:
    """Run the campaign, print its record, and exit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--log", type=Path, default=Path("build/server_campaign.log"), help="log of the server")
    options = parser.parse_args()
    options.log.parent.mkdir(parents=True, exist_ok=True)
    record = run(options.requests, options.log)
    print(json.dumps(record, indent=1))
    sys.exit(1 if record["faults"] else 0)


if __name__ == "__main__":
    main()
