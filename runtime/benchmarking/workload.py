"""Measure one artifact in one engine in all scenarios; ``mri-edge bench`` runs this in a separate process."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from time import perf_counter

import numpy as np

from mri_edge.bundles.bundle import Bundle
from mri_edge.engines import ModelFile, open_engine
from mri_edge.inference.classifier import Classifier
from mri_edge.scans import readers

from .energy import find_meter
from .scenarios import highest_rate, offline, queries_needed, server, single_stream
from .throttle import clock

# Warm-up runs that do not count, while caches fill, clocks rise and threads start.
_WARMUP = 2


@dataclass(frozen=True)
class Request:
    """What to measure.

    ``scans`` are files, used in turn. ``seconds`` and ``queries`` are the minimum of a SingleStream run, ``samples``
    the number for Offline in batches of ``batch``. With ``server_ms``, search for the highest rate with a p99 below it.
    """

    bundle: str
    artifact: str
    engine: str
    provider: str
    threads: int
    scans: Sequence[str]
    seconds: float
    queries: int
    samples: int
    batch: int
    server_ms: float | None = None
    signed_by: str | None = None


@dataclass(frozen=True)
class Reading:
    """Results in milliseconds, samples per second and MiB; ``clock`` as a fraction of the highest clock.

    ``load_ms`` includes the import of the library. ``peak_mib`` is the peak of the process up to the end of the
    model-only SingleStream run. ``stages_ms`` are medians of decode, resize and infer from file to answer.
    ``energy_source`` names the counter or sensor of the joules for each scan; all are None if there is none.
    """

    provider: str
    threads: int
    load_ms: float
    first_ms: float
    model_ms: list[float]
    model_rate: float
    peak_mib: float | None
    file_ms: list[float]
    file_rate: float
    stages_ms: dict[str, float]
    clock: float | None
    server_rate: float | None
    energy_source: str | None = None
    model_joules: float | None = None
    file_joules: float | None = None


def measure(request: Request) -> Reading:
    """Measure in this process. Raises what ``Classifier.load`` and ``predict`` do."""
    bundle = Bundle.open(request.bundle, signed_by=request.signed_by)
    artifact = bundle.artifact(request.artifact)
    model = ModelFile.of(bundle, artifact)
    resize = bundle.manifest.preprocessing.resize_picture
    tensors = np.stack([resize(readers.load(scan)) for scan in request.scans])
    count = len(tensors)
    start = perf_counter()
    engine = open_engine(model, engine=request.engine, provider=request.provider, threads=request.threads)
    opened = perf_counter()
    del model
    engine.run(tensors[:1])
    first = perf_counter()

    def run(index: int) -> None:
        engine.run(tensors[index : index + 1])

    def run_all(indices: Sequence[int]) -> None:
        for begin in range(0, len(indices), request.batch):
            engine.run(tensors[indices[begin : begin + request.batch]])

    for _ in range(_WARMUP):
        run(0)
    model_ms = single_stream(run, count, seconds=request.seconds, queries=request.queries)
    speed = clock()
    peak = peak_mib()
    meter = find_meter()
    model_joules = meter.joules_per_query(run, count) if meter else None
    run_all([0] * request.batch)  # an engine may prepare for a new batch size
    model_rate = offline(run_all, count, queries=request.samples)

    classifier = Classifier(bundle, artifact, engine, batch_size=request.batch)
    latencies = []

    def predict(index: int) -> None:
        latencies.append(classifier.predict(request.scans[index]).latency_ms)

    def predict_all(indices: Sequence[int]) -> None:
        for _ in classifier.predict_batches(request.scans[index] for index in indices):
            pass

    for _ in range(_WARMUP):
        predict(0)
    latencies.clear()
    file_ms = single_stream(predict, count, seconds=request.seconds, queries=request.queries)
    stages = {
        stage: median(getattr(latency, stage) for latency in latencies) for stage in ("decode", "resize", "infer")
    }
    file_joules = meter.joules_per_query(predict, count) if meter else None
    server_rate = None
    if (bound := request.server_ms) is not None:
        enough = queries_needed(0.99)
        server_rate = highest_rate(
            lambda rate: server(predict, count, rate=rate, queries=enough, bound_ms=bound),
            bound,
            1000 / fmean(file_ms),
        )
    return Reading(
        provider=engine.provider,
        threads=engine.threads,
        load_ms=(opened - start) * 1e3,
        first_ms=(first - opened) * 1e3,
        model_ms=model_ms,
        model_rate=model_rate,
        peak_mib=peak,
        file_ms=file_ms,
        file_rate=offline(predict_all, count, queries=request.samples),
        stages_ms=stages,
        clock=speed,
        server_rate=server_rate,
        energy_source=meter.source if meter else None,
        model_joules=model_joules,
        file_joules=file_joules,
    )


def peak_mib() -> float | None:
    """Peak memory of this process in MiB; None where the system does not report it."""
    with suppress(OSError, ValueError):  # Linux, where getrusage includes memory of the parent at the fork
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
