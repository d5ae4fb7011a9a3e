"""Olive's best for an ONNX model: each of its int8 recipes, measured with the plain ONNX Runtime; the fastest is kept.

    python olive_best.py MODEL CALIBRATION.npy OUT.onnx THREADS     # in an environment with olive-ai

Runs apart from the other benchmarks: olive-ai brings PyTorch. Prints JSON: which recipe, and what each one took.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"

_CALIBRATED = {"type": "OnnxStaticQuantization", "per_channel": True, "precision": "int8"}
RECIPES = {
    "static QDQ, int8 activations": {**_CALIBRATED, "quant_format": "QDQ", "activation_type": "int8"},
    "static QDQ, uint8 activations": {**_CALIBRATED, "quant_format": "QDQ", "activation_type": "uint8"},
    "static QOperator, uint8": {
        **_CALIBRATED,
        "quant_format": "QOperator",
        "precision": "uint8",
        "activation_type": "uint8",
    },
    "dynamic": {"type": "OnnxDynamicQuantization"},
    "peephole optimiser, float32": {"type": "OnnxPeepholeOptimizer"},
}


def main() -> None:
    """Run all recipes; those that Olive cannot do are told with their reason."""
    import olive
    import onnxruntime
    from olive import run

    model, calibration, out, threads = sys.argv[1], np.load(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    tried: dict[str, float | str] = {}
    best = np.inf
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        (folder / "raw" / name).mkdir(parents=True)
        for index, one in enumerate(calibration):
            one.tofile(folder / "raw" / name / f"{index:04}.bin")
        data = {
            "name": "calibration",
            "load_dataset_config": {
                "type": "raw_dataset",
                "params": {
                    "data_dir": str(folder / "raw"),
                    "input_names": [name],
                    "input_shapes": [list(calibration.shape[1:])],
                    "input_types": ["uint8"],
                },
            },
            "dataloader_config": {"params": {"batch_size": 1}},
        }
        for number, (title, recipe) in enumerate(RECIPES.items()):
            config = {
                "input_model": {"type": "ONNXModel", "model_path": model},
                "data_configs": [data],
                "passes": {
                    "only": {**recipe, **({"data_config": "calibration"} if "Static" in recipe["type"] else {})}
                },
                "output_dir": str(folder / f"out-{number}"),
                "cache_dir": str(folder / "cache"),
                "log_severity_level": 3,
            }
            try:
                run(config)
                [made] = (folder / f"out-{number}").rglob("*.onnx")
                tried[title] = ms = _measure(made, calibration, threads)
            except Exception as error:  # noqa: BLE001 (whatever Olive raises is the finding)
                tried[title] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
                continue
            if ms < best:
                best, chosen = ms, title
                shutil.copyfile(made, out)
    print(json.dumps({"olive": olive.__version__, "chosen": chosen, "tried_ms": tried}))


def _measure(model: Path, tensors: np.ndarray, threads: int) -> float:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    name, times = session.get_inputs()[0].name, []
    for index in range(12):
        start = time.perf_counter()
        session.run(None, {name: tensors[index % len(tensors)][None]})
        times.append(time.perf_counter() - start)
    return round(statistics.median(times[2:]) * 1e3, 3)


if __name__ == "__main__":
    main()
