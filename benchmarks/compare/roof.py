"""Measure how many multiply-adds a second this machine reaches in plain matrix products, the upper bound of an engine.

    python -m benchmarks.compare.roof             # seconds; writes build/bench/roof.json
    python -m benchmarks.compare.roof --record    # writes the committed record

Products of int8 (uint8 x int8 -> int32) and float32 run in ONNX Runtime, of float32 also in NumPy; the fastest is the
bound. The tables show what fraction of it each row of ``compare.json`` reaches.
"""

from __future__ import annotations

import math
import time
import timeit
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.guard import undisturbed
from benchmarks.records import store
from mri_edge.benchmarking.throttle import Watch
from mri_edge.bundles.bundle import Bundle
from mri_edge.device.cpu import available_cpus

# Square products, and one in the shape of VGG16's middle layers (positions x channels of 3 x 3, channels).
SIZES = ((1024, 1024, 1024), (2048, 2048, 2048), (1024, 2304, 256))
_SECONDS = 0.6
_ROUNDS, _BUSY_ROUNDS = 3, 1

Product = Callable[[], object]


def products(size: tuple[int, int, int], threads: int) -> dict[tuple[str, str], Product]:
    """Return a matrix product of random numbers by kind and library; ``size`` is rows, inner size, columns."""
    rows, inner, columns = size
    rng = np.random.default_rng(0)
    pixels, weights = rng.integers(0, 255, (rows, inner), np.uint8), rng.integers(-64, 64, (inner, columns), np.int8)
    left, right = (rng.normal(size=shape).astype(np.float32) for shape in ((rows, inner), (inner, columns)))
    return {
        ("int8", "onnxruntime"): _onnxruntime_product("MatMulInteger", pixels, weights, threads),
        ("float32", "onnxruntime"): _onnxruntime_product("MatMul", left, right, threads),
        ("float32", "numpy"): lambda: left @ right,
    }


def _onnxruntime_product(operator: str, left: np.ndarray, right: np.ndarray, threads: int) -> Product:
    import onnxruntime
    from onnx import numpy_helper, parser

    kinds = "uint8[N, K] left) => (int32" if operator == "MatMulInteger" else "float[N, K] left) => (float"
    text = (
        f'<ir_version: 8, opset_import: ["": 13]> graph ({kinds}[N, M] product) {{ product = {operator}(left, right) }}'
    )
    model = parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(right, "right"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"left": left})


def measure(threads: int, rounds: int) -> dict[str, Any]:
    """Return the record: all products in turn. The best of each kind is the bound, because it can be reached."""
    watch = Watch()
    best: dict[str, dict[str, float]] = {"int8": {}, "float32": {}}
    # The wait for a core can be subtracted for one thread; of several threads only one thread's wait is known.
    clock = undisturbed.seconds_of if threads == 1 else partial(timeit.timeit, number=1)
    with threadpool_limits(threads):  # of NumPy's BLAS
        for size in SIZES * rounds:
            for (kind, library), product in products(size, threads).items():
                product()
                fastest, until = math.inf, time.perf_counter() + _SECONDS
                while time.perf_counter() < until:
                    fastest = min(fastest, clock(product))
                best[kind][library] = max(math.prod(size) / fastest, best[kind].get(library, 0.0))
    return {
        **store.facts("numpy"),
        "threads": threads,
        "rounds": rounds,
        "multiply_adds_per_second": best,
        "roof": {kind: max(rates.values()) for kind, rates in best.items()},
        "disturbed": list(watch.marks()),
    }


def multiply_adds(bundle: Bundle) -> int | None:
    """Count in the float ONNX artifact, else in the first ONNX artifact; None without any. VGG16 at 128 x 128: 5.013e9.

    For each output value a convolution does kernel area x input channels of a group; a matrix product does
    rows x columns in all. The explanation (Grad-CAM) and biases are not counted.
    """
    import onnx

    files = [artifact.file for artifact in bundle.manifest.artifacts if artifact.file.endswith(".onnx")]
    if not files:
        return None
    model = onnx.load(bundle.folder / ("model.onnx" if "model.onnx" in files else files[0]))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {constant.name: list(constant.dims) for constant in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        shapes.setdefault(value.name, [size.dim_value for size in value.type.tensor_type.shape.dim])
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in shapes:
            shapes[node.output[0]] = shapes[node.input[0]]
    total = 0
    for node in graph.node:
        is_explanation = node.name.startswith("explanation") or "explanation" in node.output[0]
        if node.op_type in ("Conv", "Gemm", "MatMul") and not is_explanation:
            positions = math.prod(shapes[node.output[0]][2:]) if node.op_type == "Conv" else 1
            total += positions * math.prod(shapes[node.input[1]])
    return total


def kind_of(row: dict[str, Any]) -> str:
    """Return the arithmetic of a row of ``compare.json``; OpenVINO by default uses bfloat16 where the CPU has it."""
    if any(word in row["artefact"] for word in ("int8", "dynamic")):
        return "int8"
    return "bfloat16" if row["title"].startswith("OpenVINO's") else "float32"


def fraction(roof: dict[str, Any], compared: dict[str, Any], row: dict[str, Any]) -> float | None:
    """Return the fraction of the bound that a row of ``compare.json`` reaches; None if there is no such bound."""
    work, bound = compared["multiply_adds"].get(row["bundle"]), roof["roof"].get(kind_of(row))
    return work / (row["model"]["median"]["value"] / 1e3) / bound if work and bound else None


def main() -> None:
    """Measure the bound, write the record, and print the rates."""
    options = store.parse_arguments(__doc__, "one thread")
    record = measure(*(1, _BUSY_ROUNDS) if options.busy else (available_cpus(), _ROUNDS))
    store.save("roof", record, committed=options.record)
    for kind, rates in record["multiply_adds_per_second"].items():
        for library, rate in rates.items():
            print(f"{kind:<8} {library:<12} {rate / 1e9:8.1f} G multiply-adds a second")


if __name__ == "__main__":
    main()
