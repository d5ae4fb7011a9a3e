"""Measure how many multiply-adds a second this machine reaches in plain matrix products, the upper bound of an engine.

    python -m benchmarks.compare.roof             # seconds; writes build/bench/roof.json, then prints the table
    python -m benchmarks.compare.roof --record    # writes the committed record

Products of int8 (uint8 x int8 -> int32) and float32 run in ONNX Runtime, OpenVINO and NumPy; the fastest is the bound.
The table shows what fraction of it each row of ``compare.json`` reaches.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.guard import undisturbed
from benchmarks.processes import ENVIRONMENT, module, output
from benchmarks.records import store
from mri_edge.benchmarking.throttle import Watch
from mri_edge.bundles.bundle import Bundle
from mri_edge.device.cpu import available_cpus
from mri_edge.device.machine import installed

# Square products, and one in the shape of VGG16's middle layers (positions x channels of 3 x 3, channels).
SIZES = ((1024, 1024, 1024), (2048, 2048, 2048), (1024, 2304, 256))
_SECONDS = 0.6
_ROUNDS, _BUSY_ROUNDS = 3, 1

Product = Callable[[], object]


def onnxruntime_product(left: np.ndarray, right: np.ndarray, threads: int) -> Product:
    """Return ONNX Runtime's MatMul, or MatMulInteger for uint8."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    integers = left.dtype == np.uint8
    node = helper.make_node("MatMulInteger" if integers else "MatMul", ["left", "right"], ["product"])
    types = (TensorProto.UINT8, TensorProto.INT32) if integers else (TensorProto.FLOAT, TensorProto.FLOAT)
    shapes = (left.shape, (left.shape[0], right.shape[1]))
    entry, product = map(helper.make_tensor_value_info, ("left", "product"), types, shapes)
    graph = helper.make_graph([node], "product", [entry], [product], [numpy_helper.from_array(right, "right")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"left": left})


def openvino_product(left: np.ndarray, right: np.ndarray, threads: int) -> Product:
    """Return OpenVINO's MatMul in float32; its int8 needs FakeQuantize nodes, so it is not measured."""
    import openvino
    from openvino import opset13 as ops

    entry = ops.parameter(list(left.shape), np.float32)
    model = openvino.Model([ops.matmul(entry, ops.constant(right), False, False)], [entry])
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    return lambda: request.infer([left], share_inputs=True, share_outputs=True)


def numpy_product(left: np.ndarray, right: np.ndarray, threads: int) -> Product:
    """Return NumPy's matrix product, by its own BLAS; its threads are set in the environment."""
    return lambda: left @ right


PRODUCTS = {
    ("onnxruntime", "int8"): onnxruntime_product,
    ("onnxruntime", "float32"): onnxruntime_product,
    ("openvino", "float32"): openvino_product,
    ("numpy", "float32"): numpy_product,
}


def run_product(library: str, kind: str, size: tuple[int, int, int], threads: int) -> float:
    """Return the multiply-adds a second of the fastest run in this process: a bound is what can be reached."""
    rows, inner, columns = size
    rng = np.random.default_rng(0)
    if kind == "int8":
        left, right = rng.integers(0, 255, (rows, inner), np.uint8), rng.integers(-64, 64, (inner, columns), np.int8)
    else:
        left, right = (rng.normal(size=shape).astype(np.float32) for shape in ((rows, inner), (inner, columns)))
    product = PRODUCTS[library, kind](left, right, threads)
    # The wait for a core can be subtracted for one thread; of several threads only one thread's wait is known.
    clock = undisturbed.seconds_of if threads == 1 else _seconds_of
    product()
    best, until = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < until:
        best = min(best, clock(product))
    return rows * inner * columns / best


def _seconds_of(product: Product) -> float:
    start = time.perf_counter()
    product()
    return time.perf_counter() - start


def measure(threads: int, rounds: int) -> dict[str, Any]:
    """Return the record: each product in a separate process, in turn; the best of each kind is the bound."""
    watch = Watch()
    best: dict[str, dict[str, float]] = {"int8": {}, "float32": {}}
    problems: dict[str, str] = {}
    environment = ENVIRONMENT | {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    for _ in range(rounds):
        for library, kind in PRODUCTS:
            for size in SIZES:
                command = module("benchmarks.compare.roof", "--product", json.dumps([library, kind, size, threads]))
                try:
                    rate = float(output(command, env=environment)[-1])
                    best[kind][library] = max(rate, best[kind].get(library, 0.0))
                except RuntimeError as error:
                    problems[f"{library}, {kind}"] = str(error)
    return {
        **store.facts(installed(("onnxruntime", "openvino", "numpy"))),
        "threads": threads,
        "rounds": rounds,
        "multiply_adds_per_second": best,
        "roof": {kind: max(rates.values()) for kind, rates in best.items() if rates},
        "problems": problems,
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


def fractions(roof: dict[str, Any], compared: dict[str, Any]) -> dict[str, tuple[str, float]]:
    """Return for each row of ``compare.json`` its arithmetic and the fraction of the bound that its model reaches."""
    found = {}
    for key, row in compared["rows"].items():
        work, kind = compared["multiply_adds"].get(row["bundle"]), kind_of(row)
        if work and "model" in row and kind in roof["roof"]:
            found[key] = (kind, work / (row["model"]["median"]["value"] / 1e3) / roof["roof"][kind])
    return found


def main(arguments: list[str] | None = None) -> None:
    """Measure the bound, or with ``--product`` a single product in this process."""
    product = {"help": "a product to run in this process, as JSON: library, kind, size, threads"}
    options = store.parse_arguments(__doc__, "one thread", arguments, product=product)
    if options.product:
        print(run_product(*json.loads(options.product)))
        return
    record = measure(*(1, _BUSY_ROUNDS) if options.busy else (available_cpus(), _ROUNDS))
    store.save("roof", record, committed=options.record)
    for kind, rates in record["multiply_adds_per_second"].items():
        for library, rate in sorted(rates.items(), key=lambda item: -item[1]):
            print(f"{kind:<8} {library:<12} {rate / 1e9:8.1f} G multiply-adds a second")
    compared = (None if options.record else store.load_fresh("compare")) or store.load("compare")
    if compared:
        print()
        for key, (kind, fraction) in sorted(fractions(record, compared).items(), key=lambda item: -item[1][1]):
            ms = compared["rows"][key]["model"]["median"]["value"]
            print(f"{fraction:>5.0%} of the {kind} roof  {ms:>9.2f} ms  {key}")


if __name__ == "__main__":
    main()
