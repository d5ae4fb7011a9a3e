"""Run one peer on one model in this process, under the same load as all others; a request as JSON in, figures out.

``python -m benchmarks.compare.run_peer '{"peer": "onnxruntime_script", "model": …, "threads": 2, "tensors": …, …}'``
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from time import perf_counter, process_time
from typing import Any

import numpy as np

from benchmarks.compare import peers
from benchmarks.guard import undisturbed
from benchmarks.processes import output
from mri_edge.benchmarking.scenarios import offline, single_stream
from mri_edge.benchmarking.workload import peak_mib

_WARM_UP_RUNS = 2


def run_in_process(**request: Any) -> dict[str, Any]:
    """Return what ``measure`` returns in a new process. Raises RuntimeError if it fails there."""
    command = [sys.executable, "-m", "benchmarks.compare.run_peer", json.dumps(request, default=str)]
    answer: dict[str, Any] = json.loads(output(command)[-1])
    return answer


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Measure loading, the first answer and the scenarios SingleStream and Offline.

    ``"runs"`` replaces the scenarios by so many runs on the undisturbed clock. ``"answers"`` adds the probabilities of
    all tensors.
    """
    tensors, batch = np.load(request["tensors"]), request.get("batch", 1)
    start = perf_counter()
    run = getattr(peers, request["peer"])(request["model"], request["threads"], **request.get("options", {}))
    opened = perf_counter()
    run(tensors[:1])
    first = perf_counter()
    for _ in range(_WARM_UP_RUNS):
        run(tensors[:1])

    def run_all(indices: np.ndarray) -> list[np.ndarray]:
        return [run(tensors[indices[begin : begin + batch]]) for begin in range(0, len(indices), batch)]

    if "runs" in request:
        # TensorFlow computes in its own threads. Only the CPU time of the process excludes their waits.
        clock = _cpu_seconds_of if request["peer"].startswith("keras") else undisturbed.seconds_of
        images = (tensors[index % len(tensors)][None] for index in range(request["runs"]))
        found: dict[str, Any] = {"ms": [clock(partial(run, image)) * 1e3 for image in images]}
    else:
        limits = {"seconds": request["seconds"], "queries": request["queries"]}
        ms = single_stream(lambda index: run(tensors[index : index + 1]), len(tensors), **limits)
        found = {"load_ms": (opened - start) * 1e3, "first_ms": (first - opened) * 1e3, "ms": ms}
        found["peak_mib"] = peak_mib()
        run_all(np.zeros(batch, int))
        found["rate"] = offline(run_all, len(tensors), queries=request["samples"])
    if request.get("answers"):
        found["probabilities"] = np.concatenate(run_all(np.arange(len(tensors)))).astype(float).tolist()
    return found


def _cpu_seconds_of(action: Callable[[], object]) -> float:
    start = process_time()
    action()
    return process_time() - start


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
