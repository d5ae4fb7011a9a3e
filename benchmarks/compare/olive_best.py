"""Quantize an ONNX model with each of Olive's recipes, and keep the one that is fastest in plain ONNX Runtime.

    python olive_best.py MODEL CALIBRATION.npy OUT.onnx THREADS     # in an environment with olive-ai

It runs in a separate environment because olive-ai brings PyTorch. It prints JSON: the recipe, and the time of each.
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
from typing import Any

import numpy as np

os.environ |= {"OLIVE_DISABLE_TELEMETRY": "1", "ORT_DISABLE_TELEMETRY": "1"}

# The two fastest may differ by hundredths, so each model runs for SECONDS, and at least RUNS times, in each of ROUNDS.
ROUNDS, SECONDS, RUNS, WARM_UP_RUNS = 5, 0.5, 5, 2

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
    """Run all recipes; those that fail are reported with their reason."""
    import olive
    import onnxruntime

    model, calibration, out, threads = sys.argv[1], np.load(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    made: dict[str, Path] = {}
    tried: dict[str, float | str] = {}
    with tempfile.TemporaryDirectory() as work:
        data = _data_config(Path(work), name, calibration)
        for number, (title, recipe) in enumerate(RECIPES.items()):
            try:
                made[title] = _make(model, recipe, data, Path(work), number)
            except Exception as error:  # noqa: BLE001 (any failure of Olive is a result)
                tried[title] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
        if not made:
            sys.exit(f"Olive could do none of its recipes: {tried}")
        ms = _measure(made, calibration, threads)
        chosen = min(ms, key=ms.__getitem__)
        shutil.copyfile(made[chosen], out)
    answer = {"olive": olive.__version__, "chosen": chosen, "tried_ms": {**ms, **tried}}
    print(json.dumps({**answer, "calibration_images": len(calibration), "threads": threads}))


def _data_config(folder: Path, name: str, calibration: np.ndarray) -> dict[str, Any]:
    """Write one file for each calibration image; return Olive's description of them."""
    (folder / "raw" / name).mkdir(parents=True)
    for index, image in enumerate(calibration):
        image.tofile(folder / "raw" / name / f"{index:04}.bin")
    return {
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


def _make(model: str, recipe: dict[str, Any], data: dict[str, Any], folder: Path, number: int) -> Path:
    from olive import run

    out = folder / f"out-{number}"
    run(
        {
            "input_model": {"type": "ONNXModel", "model_path": model},
            "data_configs": [data],
            "passes": {"only": {**recipe, **({"data_config": "calibration"} if "Static" in recipe["type"] else {})}},
            "output_dir": str(out),
            "cache_dir": str(folder / "cache"),
            "log_severity_level": 3,
        }
    )
    [made] = out.rglob("*.onnx")
    return made


def _measure(made: dict[str, Path], tensors: np.ndarray, threads: int) -> dict[str, float]:
    """Return the milliseconds of each model: the median of rounds in which all run in turn, one session at a time."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    medians: dict[str, list[float]] = {title: [] for title in made}
    for _ in range(ROUNDS):
        for title, model in made.items():
            session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
            name, times = session.get_inputs()[0].name, []
            for _ in range(WARM_UP_RUNS):
                session.run(None, {name: tensors[:1]})
            until = time.perf_counter() + SECONDS
            while time.perf_counter() < until or len(times) < RUNS:
                start = time.perf_counter()
                session.run(None, {name: tensors[len(times) % len(tensors)][None]})
                times.append(time.perf_counter() - start)
            medians[title].append(statistics.median(times) * 1e3)
            del session
    return {title: round(statistics.median(found), 3) for title, found in medians.items()}


if __name__ == "__main__":
    main()
