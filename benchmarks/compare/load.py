"""Send requests to servers: as many as they answer with ``wrk``, or at a fixed rate to measure latency."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import numpy as np

from benchmarks.processes import ENVIRONMENT

CONNECTIONS = 16
_READY_S = 120.0

# Reads the bodies once, and sends them in turn. The last line of its output is for the caller.
_SCRIPT = """
local requests, at = {{}}, 0
local headers = {{ {headers} }}
function init()
  for name in string.gmatch([[{files}]], "[^\\n]+") do
    local file = io.open(name, "rb")
    requests[#requests + 1] = wrk.format("POST", "{path}", headers, file:read("*a"))
    file:close()
  end
end
function request()
  at = at % #requests + 1
  return requests[at]
end
function done(summary, latency)
  local errors = summary.errors
  local failed = errors.status + errors.connect + errors.read + errors.write + errors.timeout
  print(string.format("\\n%d %d %d", summary.requests, failed, summary.duration))
end
"""


@dataclass(frozen=True)
class Running:
    """A server that runs, in a process group of its own, and is stopped while no request is sent to it."""

    port: int
    pid: int

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Let it run within the block. LitServe's workers use CPU time while they wait, and others are measured."""
        os.killpg(self.pid, signal.SIGCONT)
        try:
            yield
        finally:
            os.killpg(self.pid, signal.SIGSTOP)

    def cpu_seconds(self) -> float:
        """Return the CPU time of the process and of those that it started."""
        seconds, waiting = 0.0, [self.pid]
        while waiting:
            folder = Path(f"/proc/{waiting.pop()}")
            user, system = (folder / "stat").read_text().rpartition(")")[2].split()[11:13]
            seconds += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
            for children in folder.glob("task/*/children"):
                waiting += map(int, children.read_text().split())
        return seconds


@dataclass(frozen=True)
class Requests:
    """What is sent to a server, ``running`` on this machine: a path, headers, and bodies in turn."""

    server: Running
    path: str
    bodies: Sequence[bytes]
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Rate:
    """Answers a second, and the CPU seconds that the load generator, and the processes of the server, use a second."""

    requests: float
    client_cpu: float
    server_cpu: float


def saturate(requests: Requests, seconds: float, connections: int = CONNECTIONS) -> Rate:
    """Send as many requests as the server answers. Raises RuntimeError if it refuses one, or wrk is missing."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}" for number in range(len(requests.bodies))]
        for file, body in zip(files, requests.bodies, strict=True):
            file.write_bytes(body)
        headers = ", ".join(f'["{name}"] = {json.dumps(value)}' for name, value in requests.headers.items())
        script = Path(folder) / "load.lua"
        script.write_text(_SCRIPT.format(headers=headers, files="\n".join(map(str, files)), path=requests.path))
        url = f"http://127.0.0.1:{requests.server.port}"
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--timeout", "60s", "-s", str(script), url]
        cpu = requests.server.cpu_seconds()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with requests.server.awake():
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = requests.server.cpu_seconds() - cpu
    if done.returncode:
        raise RuntimeError(done.stderr.strip() or "wrk failed")
    answered, failed, microseconds = map(int, done.stdout.split()[-3:])
    if failed or not answered:
        raise RuntimeError(f"{failed} of {answered} requests to {url}{requests.path} failed")
    client_cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    seconds = microseconds / 1e6
    return Rate(answered / seconds, client_cpu / seconds, cpu / seconds)


def latencies(requests: Requests, rate: float | None, count: int) -> list[float]:
    """Return the seconds until each answer, sorted. ``rate`` None: one request after the other.

    At a fixed rate the time counts from when a request is due, so that a wait for a connection is a part of it.
    """
    seconds: list[float] = []
    due = iter(range(count))
    lock = threading.Lock()
    start = time.perf_counter() + 0.1

    def send() -> None:
        connection = HTTPConnection("127.0.0.1", requests.server.port, timeout=60)
        while True:
            with lock:
                number = next(due, None)
            if number is None:
                break
            begun = time.perf_counter() if rate is None else start + number / rate
            time.sleep(max(0.0, begun - time.perf_counter()))
            body = requests.bodies[number % len(requests.bodies)]
            connection.request("POST", requests.path, body, dict(requests.headers))
            response = connection.getresponse()
            response.read()
            if response.status != 200:
                raise RuntimeError(f"status {response.status}")
            seconds.append(time.perf_counter() - begun)
        connection.close()

    threads = [threading.Thread(target=send) for _ in range(1 if rate is None else CONNECTIONS)]
    with requests.server.awake():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if len(seconds) < count:
        raise RuntimeError(f"{count - len(seconds)} requests failed")
    return sorted(seconds)


def binary_body(images: np.ndarray) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers of a request with a binary tensor, uint8 (N, H, W, 3)."""
    tensor = {"name": "image", "shape": list(images.shape), "datatype": "UINT8"}
    tensor["parameters"] = {"binary_data_size": images.nbytes}
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return header + images.tobytes(), {"Inference-Header-Content-Length": str(len(header))}


@contextlib.contextmanager
def running(command: Sequence[str], port: int, ready: str, **environment: str) -> Iterator[Running]:
    """Run a server within the block, from when it answers ``ready`` on ``port`` with a status below 500."""
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**ENVIRONMENT, **environment},
        cwd=Path(__file__).parents[2] / "scripts" / "measured",
        start_new_session=True,
    ) as process:
        try:
            _await(process, port, ready)
            os.killpg(process.pid, signal.SIGSTOP)
            yield Running(port, process.pid)
        finally:
            process.terminate()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGCONT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            with contextlib.suppress(ProcessLookupError):  # LitServe leaves its workers behind
                os.killpg(process.pid, signal.SIGKILL)


def _await(process: subprocess.Popen[bytes], port: int, ready: str) -> None:
    until = time.monotonic() + _READY_S
    while process.poll() is None and time.monotonic() < until:
        with contextlib.suppress(OSError), contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=5)) as client:
            client.request("GET", ready)
            if client.getresponse().status < 500:
                return
        time.sleep(0.1)
    raise RuntimeError(f"the server on port {port} does not start")
