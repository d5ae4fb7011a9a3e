"""One artefact in one engine under the scenarios, in a process of its own: what ``mri-edge bench`` measures."""

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
from mri_edge.scans.readers import picture

from .drivers import driver
from .scenario import highest_rate, queries_needed
from .throttle import clock

# Runs before those that count: caches fill, clocks rise, threads start.
_WARM = 2


@dataclass(frozen=True)
class Request:
    """What to measure.

    ``scans`` are files, read in turn; ``seconds`` and ``queries`` the least of one SingleStream run, ``samples``
    how many Offline has, in batches of ``batch``. ``server_ms``: search the rate whose p99 stays under it.
    """

    bundle: str
    artefact: str
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
    """What came of it, in milliseconds, samples a second and MiB; ``clock`` as a share of the highest.

    ``load_ms``: from the library's import to the open engine. ``peak_mib``: of the whole process, up to the end of
    the model-only SingleStream run. ``stages_ms``: medians of decode, resize and infer, from file to answer.
    """

    driver: str
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


def measure(request: Request) -> Reading:
    """Measure in this process; errors as for ``Classifier.load`` and ``predict``."""
    bundle = Bundle.open(request.bundle, signed_by=request.signed_by)
    artefact = bundle.artefact(request.artefact)
    model = ModelFile.of(bundle, artefact)
    fit = bundle.manifest.preprocessing.resize_picture
    tensors = np.stack([fit(picture.load(scan)) for scan in request.scans])
    count = len(tensors)
    start = perf_counter()
    engine = open_engine(model, engine=request.engine, provider=request.provider, threads=request.threads)
    opened = perf_counter()
    del model
    engine.run(tensors[:1])
    first = perf_counter()
    load = driver()

    def run(index: int) -> None:
        engine.run(tensors[index : index + 1])

    def run_all(indices: Sequence[int]) -> None:
        for begin in range(0, len(indices), request.batch):
            engine.run(tensors[indices[begin : begin + request.batch]])

    for _ in range(_WARM):
        run(0)
    model_ms = load.single_stream(run, count, seconds=request.seconds, queries=request.queries)
    speed = clock()
    peak = peak_mib()
    run_all([0] * request.batch)  # an engine may prepare itself for a new batch size
    model_rate = load.offline(run_all, count, queries=request.samples)

    classifier = Classifier(bundle, artefact, engine, batch_size=request.batch)
    latencies = []

    def predict(index: int) -> None:
        latencies.append(classifier.predict(request.scans[index]).latency_ms)

    def predict_all(indices: Sequence[int]) -> None:
        for _ in classifier.predict_batches(request.scans[index] for index in indices):
            pass

    for _ in range(_WARM):
        predict(0)
    latencies.clear()
    file_ms = load.single_stream(predict, count, seconds=request.seconds, queries=request.queries)
    stages = {stage: median(getattr(one, stage) for one in latencies) for stage in ("decode", "resize", "infer")}
    server_rate = None
    if request.server_ms is not None:
        enough = queries_needed(0.99)
        server_rate = highest_rate(
            lambda rate: load.server(predict, count, rate=rate, queries=enough),
            request.server_ms,
            1000 / fmean(file_ms),
        )
    return Reading(
        driver=load.name,
        provider=engine.provider,
        threads=engine.threads,
        load_ms=(opened - start) * 1e3,
        first_ms=(first - opened) * 1e3,
        model_ms=model_ms,
        model_rate=model_rate,
        peak_mib=peak,
        file_ms=file_ms,
        file_rate=load.offline(predict_all, count, queries=request.samples),
        stages_ms=stages,
        clock=speed,
        server_rate=server_rate,
    )


def peak_mib() -> float | None:
    """The most memory that this process ever held, in MiB; None on a system that does not tell."""
    with suppress(OSError, ValueError):  # Linux; getrusage there counts what the parent held when it forked
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
