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
import timeit
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

os.environ |= {"OLIVE_DISABLE_TELEMETRY": "1", "ORT_DISABLE_TELEMETRY": "1"}

# The two fastest may differ by hundredths, so each model runs for SECONDS, and at least RUNS times, in each of ROUNDS.
ROUNDS, SECONDS, RUNS, WARM_UP_RUNS = 5, 0.5, 5, 2

_CALIBRATED = {"type": "OnnxStaticQuantization", "per_channel": True, "data_config": "calibration"}
RECIPES = {
    "static QDQ, int8 activations": {"quant_format": "QDQ", "precision": "int8", "activation_type": "int8"},
    "static QDQ, uint8 activations": {"quant_format": "QDQ", "precision": "int8", "activation_type": "uint8"},
    "static QOperator, uint8": {"quant_format": "QOperator", "precision": "uint8", "activation_type": "uint8"},
    "dynamic": {"type": "OnnxDynamicQuantization"},
    "peephole optimizer, float32": {"type": "OnnxPeepholeOptimizer"},
}


def main() -> None:
    """Run all recipes; those that fail are reported with their reason."""
    import olive
    import onnxruntime

    model, calibration, out, threads = sys.argv[1], np.load(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    [entry] = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).get_inputs()
    made: dict[str, Path] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as work:
        data = _write_calibration(Path(work) / "raw", entry.name, calibration)
        for number, (title, recipe) in enumerate(RECIPES.items()):
            settings = {
                "input_model": {"type": "ONNXModel", "model_path": model},
                "data_configs": [data],
                "passes": {"only": recipe if "type" in recipe else _CALIBRATED | recipe},
                "output_dir": f"{work}/out-{number}",
                "cache_dir": f"{work}/cache",
                "log_severity_level": 3,
            }
            try:
                olive.run(settings)
                [made[title]] = Path(work, f"out-{number}").rglob("*.onnx")
            except Exception as error:  # noqa: BLE001 (any failure of Olive is a result)
                failed[title] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        if not made:
            sys.exit(f"Olive could do none of its recipes: {failed}")
        rounds = [{title: _median_ms(made[title], calibration, threads) for title in made} for _ in range(ROUNDS)]
        ms = {title: round(statistics.median(found[title] for found in rounds), 3) for title in made}
        chosen = min(ms, key=ms.__getitem__)
        shutil.copyfile(made[chosen], out)
    answer = {"olive": olive.__version__, "chosen": chosen, "tried_ms": ms | failed}
    print(json.dumps({**answer, "calibration_images": len(calibration), "threads": threads}))


def _write_calibration(folder: Path, name: str, calibration: np.ndarray) -> dict[str, Any]:
    """Write one file for each image; return Olive's description of them. ``name`` is the input of the model."""
    (folder / name).mkdir(parents=True)
    for index, image in enumerate(calibration):
        image.tofile(folder / name / f"{index:04}.bin")
    inputs = {"input_names": [name], "input_shapes": [list(calibration.shape[1:])], "input_types": ["uint8"]}
    return {
        "name": "calibration",
        "load_dataset_config": {"type": "raw_dataset", "params": {"data_dir": str(folder), **inputs}},
        "dataloader_config": {"params": {"batch_size": 1}},
    }


def _median_ms(model: Path, tensors: np.ndarray, threads: int) -> float:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    name, images = session.get_inputs()[0].name, cycle(tensors)
    timer = timeit.Timer(lambda: session.run(None, {name: next(images)[None]}))
    expected = timer.timeit(WARM_UP_RUNS) / WARM_UP_RUNS
    return statistics.median(timer.repeat(max(RUNS, round(SECONDS / expected)), number=1)) * 1e3


if __name__ == "__main__":
    main()
