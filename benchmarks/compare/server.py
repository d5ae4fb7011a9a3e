"""Measure the rate and latency of ``mri-edge serve`` beside its engine, a bare echo, ``predict`` and other servers.

    python -m benchmarks.compare.server             # four minutes; writes build/bench/server.json; needs wrk (apt)
    python -m benchmarks.compare.server --record    # writes the committed record
    python -m benchmarks.compare.server --litserve PYTHON --bentoml PYTHON    # of environments that have them

The subjects run in turn (A B, A B, …) on the same cores as the load generator. LitServe and BentoML run the same model
behind a plain resize, and do less for a picture: they neither frame the head nor check it.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compare.load import Rate, Requests, Running, binary_body, latencies, running, saturate
from benchmarks.processes import SCANS, free_port, program, script, wall_seconds
from benchmarks.records.store import facts, parse_arguments, save
from mri_edge import Classifier
from mri_edge.benchmarking.benchmark import spread
from mri_edge.bundles.bundle import EMBEDDED

ROUNDS, BUSY_ROUNDS, SECONDS = 7, 3, 2.0
BATCH_SECONDS = 4.0  # of requests that take some tenths of a second each
BATCH = 16  # pictures in a body for vgg16
FOLDER = 600  # files for `predict`
LATENCY_REQUESTS = 500  # in a round
SINGLE_REQUESTS = 50
MODEL = "lite"  # of the pictures

Measure = Callable[[], Rate]


def tensors(server: Running, model: str, batch: int) -> Requests:
    """Return requests with one binary tensor each."""
    size = Classifier.load(model).bundle.manifest.preprocessing
    images = np.random.default_rng(7).integers(0, 256, (batch, size.height, size.width, 3), np.uint8)
    body, headers = binary_body(images)
    return Requests(server, f"/v2/models/{model}/infer", [body], headers)


def pictures(server: Running) -> Requests:
    """Return requests with a JPEG each, for ``/v1/classify``."""
    return Requests(server, "/v1/classify", [scan.read_bytes() for scan in SCANS], {"Content-Type": "image/jpeg"})


def forms(server: Running, path: str) -> Requests:
    """Return the same pictures as forms, which other servers take."""
    begin = b'--x\r\nContent-Disposition: form-data; name="scan"; filename="a.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
    bodies = [begin + scan.read_bytes() + b"\r\n--x--\r\n" for scan in SCANS]
    return Requests(server, path, bodies, {"Content-Type": "multipart/form-data; boundary=x"})


def engine_rate(classifier: Classifier, batch: int, seconds: float = SECONDS) -> Rate:
    """Return how many batches a second the engine runs in this process."""
    size = classifier.bundle.manifest.preprocessing
    images = np.random.default_rng(7).integers(0, 256, (batch, size.height, size.width, 3), np.uint8)
    runs, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        classifier.engine.run(images)
        runs += 1
    return Rate(runs / passed, 0.0, 0.0)


def folder_rate(folder: Path, one: Path) -> Rate:
    """Return how many files a second ``predict`` classifies, without the start of its process."""
    command = program("predict", "--model", MODEL, "--json")
    start = wall_seconds([*command, str(one)])
    return Rate((FOLDER - 1) / (wall_seconds([*command, str(folder)]) - start), 0.0, 0.0)


def in_turn(rounds: int, *subjects: Measure) -> list[list[Rate]]:
    """Measure each subject once a round; a first round is not counted."""
    measured = [[measure() for measure in subjects] for _ in range(rounds + 1)]
    return [list(rates) for rates in zip(*measured[1:], strict=True)]


def compared(peer: str, target: float, ours: list[Rate], theirs: list[Rate]) -> dict[str, Any]:
    """Return a row: the rates of both, and our rate relative to the peer's, by rounds."""
    ratios = [our.requests / their.requests for our, their in zip(ours, theirs, strict=True)]
    row = {
        "peer": peer,
        "target": target,
        "requests_per_s": asdict(spread([rate.requests for rate in ours])),
        "peer_requests_per_s": asdict(spread([rate.requests for rate in theirs])),
        "ratio": asdict(spread(ratios)),
        "client_cpu": statistics.median(rate.client_cpu for rate in ours),
        "cpu_us": statistics.median(rate.server_cpu / rate.requests for rate in ours) * 1e6,
        "peer_cpu_us": statistics.median(rate.server_cpu / rate.requests for rate in theirs) * 1e6,
    }
    print(f"{row['ratio']['value']:>6.2f} (target {target})  {peer}", flush=True)
    return row


def latency(server: Requests, echo: Requests, capacity: float, rounds: int) -> dict[str, Any]:
    """Return latencies at half the capacity, beside those of the echo at the same rate, in ms: medians of rounds."""
    found: dict[str, list[list[float]]] = {"single": [], "server": [], "echo": []}
    for _ in range(rounds):
        found["single"].append(latencies(server, None, SINGLE_REQUESTS))
        found["server"].append(latencies(server, capacity / 2, LATENCY_REQUESTS))
        found["echo"].append(latencies(echo, capacity / 2, LATENCY_REQUESTS))

    def milliseconds(name: str, percent: int) -> float:
        return statistics.median(times[len(times) * percent // 100] for times in found[name]) * 1e3

    row: dict[str, Any] = {"single_ms": milliseconds("single", 50), "rate": capacity / 2}
    row |= {name: {"p50_ms": milliseconds(name, 50), "p99_ms": milliseconds(name, 99)} for name in ("server", "echo")}
    row["p99_to_single"] = row["server"]["p99_ms"] / row["single_ms"]
    print(f"{row['p99_to_single']:>6.2f} (target 3, at most)  p99 at half load to a single request", flush=True)
    return row


def main() -> None:
    """Measure everything in turn, and write the record."""
    peers = {"litserve": "Python with LitServe", "bentoml": "Python with BentoML"}
    options = parse_arguments(__doc__, "fewer rounds", **{name: {"help": help} for name, help in peers.items()})
    load, rounds, rows = [os.getloadavg()[0]], BUSY_ROUNDS if options.busy else ROUNDS, {}
    with ExitStack() as stack:
        port, echo_port = free_port(), free_port()
        models = [argument for name in (MODEL, "small", "vgg16") for argument in ("--model", name)]
        start = stack.enter_context
        server = start(running(program("serve", "--port", port, *models), port, "/v2/health/ready"))
        plain = start(running(script("serve_echo.py", echo_port), echo_port, "/"))
        folder = Path(start(tempfile.TemporaryDirectory()))
        for number in range(FOLDER):
            shutil.copy(SCANS[number % len(SCANS)], folder / f"{number}.jpg")

        def compare(name: str, peer: str, target: float, subjects: Iterable[Measure]) -> None:
            rows[name] = compared(peer, target, *in_turn(rounds, *subjects))

        with Classifier.load("vgg16") as vgg16:
            ours = partial(saturate, tensors(server, "vgg16", BATCH), BATCH_SECONDS, 2)
            compare("vgg16, tensors", "engine.run", 0.9, (ours, partial(engine_rate, vgg16, BATCH, BATCH_SECONDS)))
        small = tensors(server, "small", 1)
        echo = Requests(plain, "/", small.bodies, {})
        compare("small, tensors", "echo", 0.9, (partial(saturate, small, SECONDS), partial(saturate, echo, SECONDS)))
        with Classifier.load("small") as classifier:
            ours = partial(saturate, small, SECONDS)
            compare("small, tensors, engine.run", "engine.run", 0, (ours, partial(engine_rate, classifier, 1)))
        ours = partial(saturate, pictures(server), SECONDS)
        compare(f"{MODEL}, pictures", "predict FOLDER", 0.8, (ours, partial(folder_rate, folder, SCANS[0])))
        capacity = rows[f"{MODEL}, pictures"]["requests_per_s"]["value"]
        at_half = latency(pictures(server), Requests(plain, "/", pictures(server).bodies, {}), capacity, rounds)
        model = str(EMBEDDED / MODEL / "model.int8.onnx")
        for title, command, path, ready in _other_servers(options):
            other = free_port()
            with running([*command, str(other)], other, ready, MODEL=model, BENTOML_DO_NOT_TRACK="True") as peer:
                theirs = partial(saturate, forms(peer, path), SECONDS)
                compare(f"{MODEL}, pictures, {title}", title, 1.5, (ours, theirs))
    record = facts("starlette", "uvicorn", "uvloop") | {"load": [*load, os.getloadavg()[0]], "rounds": rounds}
    save("server", record | {"rows": rows, "latency": at_half}, committed=options.record)


def _other_servers(options: Any) -> list[tuple[str, list[str], str, str]]:
    """Return title, command without its port, path and path of the probe for each server that was given."""
    found = []
    if options.litserve:
        found.append(("LitServe", [options.litserve, "serve_litserve.py"], "/predict", "/health"))
    if options.bentoml:
        command = [str(Path(options.bentoml).with_name("bentoml")), "serve", "serve_bentoml:Pictures", "--port"]
        found.append(("BentoML", command, "/classify", "/readyz"))
    return found


if __name__ == "__main__":
    main()
