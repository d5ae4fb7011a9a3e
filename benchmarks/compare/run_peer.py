"""One peer on one model, alone in this process, under the same load as all others: JSON in, JSON out.

``run_peer.py '{"peer": "onnxruntime_script", "model": …, "threads": 2, "tensors": "scans.npy", …}'``
"""

from __future__ import annotations

import importlib
import json
import sys
from functools import partial
from time import perf_counter

import numpy as np
import undisturbed

from mri_edge.benchmarking.drivers import driver
from mri_edge.benchmarking.workload import peak_mib

_WARM = 2


def measure(request):
    """Load, first answer, SingleStream, Offline; with ``"answers"`` the probabilities of all tensors, too.

    With ``"runs"``: that many runs on the undisturbed clock in place of the scenarios.
    """
    tensors = np.load(request["tensors"])
    start = perf_counter()
    peer = importlib.import_module(f"peers.{request['peer']}")
    run = peer.open(request["model"], request["threads"], **request.get("options", {}))
    opened = perf_counter()
    run(tensors[:1])
    first = perf_counter()
    for _ in range(_WARM):
        run(tensors[:1])
    if "runs" in request:
        keras = request["peer"].startswith("keras")  # TensorFlow works in threads of its own
        seconds = [
            undisturbed.seconds_of(partial(run, tensors[index % len(tensors)][None]), all_threads=keras)
            for index in range(request["runs"])
        ]
        found = {"ms": [one * 1e3 for one in seconds]}
        return found | (_answers(run, tensors, request["batch"]) if request["answers"] else {})
    load, batch = driver(), request["batch"]
    ms = load.single_stream(
        lambda index: run(tensors[index : index + 1]),
        len(tensors),
        seconds=request["seconds"],
        queries=request["queries"],
    )
    peak = peak_mib()
    run(tensors[np.zeros(batch, int)])

    def run_all(indices):
        for begin in range(0, len(indices), batch):
            run(tensors[indices[begin : begin + batch]])

    found = {
        "driver": load.name,
        "load_ms": (opened - start) * 1e3,
        "first_ms": (first - opened) * 1e3,
        "ms": ms,
        "rate": load.offline(run_all, len(tensors), queries=request["samples"]),
        "peak_mib": peak,
    }
    return found | (_answers(run, tensors, batch) if request["answers"] else {})


def _answers(run, tensors, batch):
    found = [run(tensors[begin : begin + batch]) for begin in range(0, len(tensors), batch)]
    return {"probabilities": np.concatenate(found).astype(float).tolist()}


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
