"""The roof: how many multiply-adds a second this machine reaches in plain matrix products, and who comes near it.

    python benchmarks/roof.py             # seconds; writes build/bench/roof.json, then the table
    python benchmarks/roof.py --record    # writes the committed record

int8 (uint8 x int8 -> int32) and float32, in the libraries that people use; the best of them is the roof. Beside the
times of ``compare.py``'s record it prints which share of the roof each engine reaches.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import records
import undisturbed

from mri_edge.benchmarking.benchmark import machine_facts
from mri_edge.benchmarking.throttle import Watch
from mri_edge.device.cpu import available_cpus
from mri_edge.device.machine import installed

# Square products, and one in the shape of VGG16's middle layers (places x channels of 3 x 3, channels).
SIZES = ((1024, 1024, 1024), (2048, 2048, 2048), (1024, 2304, 256))
_SECONDS = 0.6
_ROUNDS, _BUSY_ROUNDS = 3, 1


def onnxruntime_product(kind: str, size: tuple[int, int, int], threads: int) -> float:
    """ONNX Runtime's MatMul, or MatMulInteger."""
    import numpy as np
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    rows, inner, columns = size
    rng = np.random.default_rng(0)
    if kind == "int8":
        left, node = rng.integers(0, 255, (rows, inner), np.uint8), "MatMulInteger"
        right = rng.integers(-64, 64, (inner, columns), np.int8)
        types = (TensorProto.UINT8, TensorProto.INT32)
    else:
        left, node = rng.normal(size=(rows, inner)).astype(np.float32), "MatMul"
        right = rng.normal(size=(inner, columns)).astype(np.float32)
        types = (TensorProto.FLOAT, TensorProto.FLOAT)
    graph = helper.make_graph(
        [helper.make_node(node, ["left", "right"], ["product"])],
        "product",
        [helper.make_tensor_value_info("left", types[0], [rows, inner])],
        [helper.make_tensor_value_info("product", types[1], [rows, columns])],
        [numpy_helper.from_array(right, "right")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    assert onnx.checker.check_model(model) is None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return _rate(lambda: session.run(None, {"left": left}), rows * inner * columns, threads)


def openvino_product(kind: str, size: tuple[int, int, int], threads: int) -> float:
    """OpenVINO's MatMul; its 8 bits come by FakeQuantize, so they are left to the others."""
    import numpy as np
    import openvino
    from openvino import opset13 as ops

    rows, inner, columns = size
    rng = np.random.default_rng(0)
    entry = ops.parameter([rows, inner], np.float32)
    weights = ops.constant(rng.normal(size=(inner, columns)).astype(np.float32))
    model = openvino.Model([ops.matmul(entry, weights, False, False)], [entry])
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    left = rng.normal(size=(rows, inner)).astype(np.float32)
    return _rate(lambda: request.infer([left], share_inputs=True, share_outputs=True), rows * inner * columns, threads)


def numpy_product(kind: str, size: tuple[int, int, int], threads: int) -> float:
    """NumPy's matrix product, by the BLAS that it brings."""
    import numpy as np

    rows, inner, columns = size
    rng = np.random.default_rng(0)
    left, right = (rng.normal(size=one).astype(np.float32) for one in ((rows, inner), (inner, columns)))
    return _rate(lambda: left @ right, rows * inner * columns, threads)


PRODUCTS = {"onnxruntime": onnxruntime_product, "openvino": openvino_product, "numpy": numpy_product}
_KINDS = {"onnxruntime": ("int8", "float32"), "openvino": ("float32",), "numpy": ("float32",)}


def _rate(product: Callable[[], object], multiply_adds: int, threads: int) -> float:
    """Multiply-adds a second in the fastest run: a roof is what can be reached, not what is usual."""
    # With one thread, what it waits for a core can be left out; of several only one's wait would be seen.
    clock = undisturbed.seconds_of if threads == 1 else _seconds_of
    product()
    best, until = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < until:
        best = min(best, clock(product))
    return multiply_adds / best


def _seconds_of(product: Callable[[], object]) -> float:
    start = time.perf_counter()
    product()
    return time.perf_counter() - start


def _alone(library: str, kind: str, size: tuple[int, int, int], threads: int) -> float | str:
    environment = os.environ | {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    command = [sys.executable, __file__, "--one", json.dumps([library, kind, size, threads])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    return float(done.stdout.splitlines()[-1])


def measure(threads: int, rounds: int) -> dict[str, Any]:
    """Every product in every library, each alone, in turn; the best of each kind is the roof."""
    watch = Watch()
    best: dict[str, dict[str, float]] = {"int8": {}, "float32": {}}
    problems: dict[str, str] = {}
    for _ in range(rounds):
        for library, kinds in _KINDS.items():
            for kind in kinds:
                for size in SIZES:
                    found = _alone(library, kind, size, threads)
                    if isinstance(found, str):
                        problems[f"{library}, {kind}"] = found
                    else:
                        best[kind][library] = max(found, best[kind].get(library, 0.0))
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine_facts(),
        "libraries": installed(("onnxruntime", "openvino", "numpy")),
        "threads": threads,
        "rounds": rounds,
        "multiply_adds_per_second": best,
        "roof": {kind: max(found.values()) for kind, found in best.items() if found},
        "problems": problems,
        "disturbed": list(watch.marks()),
    }


def kind_of(row: dict[str, Any]) -> str:
    """The arithmetic of a row of ``compare.py``'s record; OpenVINO left alone takes bfloat16 where the CPU has it."""
    if any(word in row["artefact"] for word in ("int8", "dynamic")):
        return "int8"
    return "bfloat16" if row["title"].startswith("OpenVINO's") else "float32"


def shares(roof: dict[str, Any], compared: dict[str, Any]) -> dict[str, tuple[str, float]]:
    """Row of ``compare.py``'s record -> kind of arithmetic, share of the roof that it reaches (model only)."""
    found = {}
    for key, row in compared["rows"].items():
        work = compared["multiply_adds"].get(row["bundle"])
        kind = kind_of(row)
        if work and "model" in row and kind in roof["roof"]:
            found[key] = (kind, work / (row["model"]["median"]["value"] / 1e3) / roof["roof"][kind])
    return found


def main(arguments: list[str] | None = None) -> None:
    """Measure the roof, or one product in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write the committed record")
    parser.add_argument("--busy", action="store_true", help="for a machine with other work: one thread")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.one:
        library, kind, size, threads = json.loads(chosen.one)
        print(PRODUCTS[library](kind, tuple(size), threads))
        return
    record = measure(*(1, _BUSY_ROUNDS) if chosen.busy else (available_cpus(), _ROUNDS))
    records.save("roof", record, committed=chosen.record)
    for kind, found in record["multiply_adds_per_second"].items():
        for library, rate in sorted(found.items(), key=lambda item: -item[1]):
            print(f"{kind:<8} {library:<12} {rate / 1e9:8.1f} G multiply-adds a second")
    compared = (None if chosen.record else records.load_fresh("compare")) or records.load("compare")
    if compared:
        print()
        for key, (kind, share) in sorted(shares(record, compared).items(), key=lambda item: -item[1][1]):
            ms = compared["rows"][key]["model"]["median"]["value"]
            print(f"{share:>5.0%} of the {kind} roof  {ms:>9.2f} ms  {key}")


if __name__ == "__main__":
    main()
