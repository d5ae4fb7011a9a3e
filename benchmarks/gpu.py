"""Show on a machine with an NVIDIA GPU, within ten minutes, that it computes, how exactly, and how fast.

    python -m benchmarks.gpu             # writes build/bench/gpu.json
    python -m benchmarks.gpu --record    # writes the committed record in benchmarks/results/

Each step runs in processes of its own, so that a crash or an endless build is a line of the record. Without a GPU
the steps are listed with the reason why each is left out, and the exit code is 0. It is 1 if a step went wrong.

Exactness: float32 is computed in TF32 on the GPU, with a significand of 11 bits, so probabilities may differ by 0.002
from the CPU's; those of int8 artifacts by 0.03. A label must not change.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compare import gpu_peers
from benchmarks.guard.float_twin import write_float_twin
from benchmarks.processes import CHECKOUT, SCANS, program
from benchmarks.records.store import facts, parse_arguments, save
from benchmarks.reference import tensors_of
from mri_edge import Bundle
from mri_edge.engines import engine_file, open_engine
from mri_edge.engines._nvidia import NO_GPU, gpu_name
from mri_edge.errors import MriEdgeError
from mri_edge.inference.prediction import decide
from mri_edge.inference.replay import tolerance_of

PROVIDERS = ("cuda", "tensorrt")
MODELS = ("small", "lite", "vgg16")
BATCHES = (1, 4, 16, 64, 256)
PEERS = ("torch_vgg16", "keras_vgg16")
LIMIT_S = 570  # for all steps together; a step is stopped then, and later ones are left out
_END = time.monotonic() + LIMIT_S
_RUNS = 30

Step = Callable[[Path], dict[str, Any]]


def steps(provider: str) -> dict[str, Step]:
    """Return what is shown of a provider, by name, in order. Each step gets a folder that TensorRT's cache is in."""
    found: dict[str, Step] = {
        "opens strictly": partial(_opens, provider),
        "falls back only if allowed": partial(_fallback, provider),
        "verify": partial(_verify, provider),
        **{f"parity with the CPU, {model}": partial(_isolated, "parity", provider, model) for model in MODELS},
        **{f"speed, {model}": partial(_isolated, "speed", provider, model) for model in MODELS},
        "tune and predict with its profile": partial(_tune, provider),
    }
    if provider == "tensorrt":
        found["opens faster with its cache"] = _cache
    return found


def _seconds_left() -> float:
    return max(0.0, _END - time.monotonic())


def _mri_edge(folder: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {"XDG_CACHE_HOME": str(folder), "MRI_EDGE_PROFILE_DIR": str(folder / "profiles"), **environment}
    command = program(*arguments)
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=_seconds_left(),
        cwd=CHECKOUT,
        env={**os.environ, **settings},
    )


def _opens(provider: str, folder: Path) -> dict[str, Any]:
    """A named provider must start, and is read back from the library."""
    done = _mri_edge(folder, "predict", SCANS[0], "--json", "--model", "small", "--provider", provider)
    name = json.loads(done.stdout)["provider"] if done.returncode == 0 else None
    return {"right": name is not None and name != "CPUExecutionProvider", "provider": name, "said": done.stderr.strip()}


def _fallback(provider: str, folder: Path) -> dict[str, Any]:
    """Without a visible GPU the provider is refused, and with --allow-fallback the result says that the CPU ran."""
    arguments = ["predict", SCANS[0], "--json", "--model", "small", "--provider", provider]
    strict = _mri_edge(folder, *arguments, CUDA_VISIBLE_DEVICES="")
    lenient = _mri_edge(folder, *arguments, "--allow-fallback", CUDA_VISIBLE_DEVICES="")
    result = json.loads(lenient.stdout) if lenient.returncode == 0 else {"warnings": [], "provider": None}
    codes = [warning["code"] for warning in result["warnings"]]
    right = strict.returncode == 4 and result["provider"] == "CPUExecutionProvider" and "provider_fallback" in codes
    return {"right": right, "refused": strict.stderr.strip(), "warnings": codes}


def _verify(provider: str, folder: Path) -> dict[str, Any]:
    done = _mri_edge(folder, "verify", "small", "--json", "--provider", provider)
    found = json.loads(done.stdout)
    return {"right": done.returncode == 0, "replayed": found["replayed"], "first": found["first_difference"]}


def _tune(provider: str, folder: Path) -> dict[str, Any]:
    """A profile holds the measurements of several providers; predict uses those of the one that is named."""
    tuned = {
        name: _mri_edge(folder, "tune", "small", "--provider", name, "--seconds", 0.1, "--batch", 64, "--json")
        for name in dict.fromkeys(("cpu", provider))
    }
    done = _mri_edge(folder, "predict", SCANS[0], "--json", "--model", "small", "--provider", provider, "-v")
    many = {name: json.loads(run.stdout)["many"] for name, run in tuned.items() if run.returncode == 0}
    return {"right": len(many) == len(tuned) and "by the device profile" in done.stderr, "many": many}


def _cache(folder: Path) -> dict[str, Any]:
    """TensorRT builds its engine once; a second start reads it."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        done = _mri_edge(folder / "cache", "warmup", "small", "--provider", "tensorrt", "--batch", 1)
        seconds.append(round(time.perf_counter() - start, 1))
    return {"right": done.returncode == 0 and seconds[1] < seconds[0], "seconds": seconds}


def _isolated(what: str, provider: str, model: str, folder: Path) -> dict[str, Any]:
    """Run ``parity`` or ``speed`` in a new process."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--step", what, "--provider", provider, "--model", model]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder)}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=_seconds_left(), cwd=CHECKOUT, env=environment
    )
    if done.returncode:
        return {"right": False, "said": (done.stderr.strip().splitlines() or ["it ended"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _networks(model: str, folder: Path) -> dict[str, Path]:
    """Return the int8 artifact of a model, and its twin in float32, by precision."""
    quantized, twin = Bundle.open(model).folder / "model.int8.onnx", folder / f"{model}.onnx"
    write_float_twin(quantized, twin)
    return {"float32": twin, "int8": quantized}


def parity(provider: str, model: str) -> dict[str, Any]:
    """Compare probabilities and labels with the CPU's, on the demo scans."""
    bundle = Bundle.open(model)
    tensors, manifest = tensors_of(bundle, SCANS), bundle.manifest
    record: dict[str, Any] = {"right": True}
    with tempfile.TemporaryDirectory() as folder:
        for precision, path in _networks(model, Path(folder)).items():
            try:
                there, here = (open_engine(path, provider=name).run(tensors) for name in (provider, "cpu"))
            except MriEdgeError as error:  # TensorRT builds only int8 artifacts that were made for it
                record[precision] = {"refused": str(error)}
                record["right"] &= precision != "float32"
                continue
            labels = [decide(answer, manifest.positive, manifest.threshold) for answer in (there, here)]
            difference, tolerance = float(np.abs(there - here).max()), tolerance_of(precision, provider)
            flips = int((labels[0] != labels[1]).sum())
            record[precision] = {"largest": difference, "tolerance": tolerance, "flips": flips}
            record["right"] &= difference <= tolerance and not flips
    return record


def speed(provider: str, model: str) -> dict[str, Any]:
    """Return milliseconds of a run (median) and scans per second, by precision and batch size."""
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for precision, path in _networks(model, Path(folder)).items():
            try:
                engine = open_engine(path, provider=provider)
            except MriEdgeError as error:
                rows[precision] = {"refused": str(error)}
                continue
            rows[precision] = {batch: measure(engine.run, (batch, *engine.input.shape[1:])) for batch in BATCHES}
            engine.close()
    return {"right": "refused" not in rows["float32"], **rows}


def measure(run: Callable[[np.ndarray], object], shape: tuple[Any, ...]) -> dict[str, float]:
    """Time runs on noise, uint8 of a shape, after two that warm up."""
    batch = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    seconds = []
    for _ in range(_RUNS + 2):
        start = time.perf_counter()
        run(batch)
        seconds.append(time.perf_counter() - start)
    middle = float(np.median(seconds[2:]))
    return {"ms": round(middle * 1e3, 3), "scans_per_second": round(shape[0] / middle, 1)}


def peer(_: str, name: str) -> dict[str, Any]:
    """Time VGG16 of another library on the same GPU, if it is installed and finds the GPU."""
    preprocessing = Bundle.open("vgg16").manifest.preprocessing
    size = preprocessing.height, preprocessing.width
    try:
        run = getattr(gpu_peers, name)(*size)
    except (ImportError, RuntimeError) as error:
        return {"right": True, "left out": str(error)}
    return {"right": True, "float32": {batch: measure(run, (batch, *size, 3)) for batch in BATCHES}}


def run_steps(reason: str | None) -> dict[str, dict[str, Any]]:
    """Run every step, or leave all out for a reason. A step that fails or begins too late is a line as well."""
    planned = [(f"{provider}: {name}", step) for provider in PROVIDERS for name, step in steps(provider).items()]
    planned += [(f"peer: {name}", partial(_isolated, "peer", "none", name)) for name in PEERS]
    record: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, step in planned:
            if reason or _seconds_left() == 0:
                record[name] = {"right": None, "left out": reason or f"{LIMIT_S} s had passed"}
            else:
                try:
                    record[name] = step(Path(folder))
                except (subprocess.SubprocessError, ValueError, OSError, KeyError) as error:
                    record[name] = {"right": False, "said": f"{type(error).__name__}: {error}"}
            print(f"{_verdict(record[name]):<9} {name}{'' if reason else f': {_describe(record[name])}'}", flush=True)
    return record


def _verdict(found: dict[str, Any]) -> str:
    return "left out" if "left out" in found else "right" if found["right"] else "WRONG"


def _describe(found: dict[str, Any]) -> str:
    facts = {key: value for key, value in found.items() if key != "right" and value}
    return str(facts.get("left out") or json.dumps(facts))


def reason_to_leave_out() -> str | None:
    """Return why nothing can be shown on this machine, or None."""
    if gpu_name() == NO_GPU:
        return "the NVIDIA driver reports no GPU here"
    return engine_file("onnxruntime").missing()


def main() -> int:
    """Run all steps and write the record; or one step, for ``_isolated``. Return 1 if something went wrong."""
    choices = {"default": None, "help": "run one step and print its record"}
    options = parse_arguments(__doc__, "nothing changes", step=choices, provider=choices, model=choices)
    if options.step:
        print(
            json.dumps({"parity": parity, "speed": speed, "peer": peer}[options.step](options.provider, options.model))
        )
        return 0
    reason = reason_to_leave_out()
    print(f"GPU: {gpu_name()}" if reason is None else f"nothing is measured: {reason}. The steps are:", flush=True)
    record = run_steps(reason)
    packages = ("onnxruntime-gpu", "tensorrt", "torch", "tensorflow", "keras")
    save("gpu", facts(*packages) | {"gpu": gpu_name(), "steps": record}, committed=options.record)
    return int(any(found["right"] is False for found in record.values()))


if __name__ == "__main__":
    sys.exit(main())
