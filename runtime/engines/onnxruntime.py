"""ONNX Runtime: ``.onnx`` files on the CPU and on its GPU and NPU execution providers."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EngineError, EngineUnavailable, ProviderUnavailable
from ..manifest import TensorSpec
from . import Batch, Probabilities, check_batch

NAME = "onnxruntime"
SUFFIXES = (".onnx",)
EXTRA = "gpu"  # the CPU wheel is a plain dependency; only another provider needs an extra
PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")
RANK = 0

_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
}
PROVIDERS = tuple(_PROVIDERS)
# TensorRT is left out: it builds an engine for minutes, so it must be asked for.
_AUTO = ("cuda", "coreml", "directml", "openvino", "cpu")

# ONNX type names; onnxruntime names the same types in its own way.
_DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}


def missing() -> str | None:
    """Why this engine cannot run here, or None."""
    return None if find_spec("onnxruntime") else "the package onnxruntime is not installed"


def open(path: Path, *, threads: int, provider: str = "auto") -> OnnxRuntimeEngine:
    """Open an ONNX file; see ``engines.open_engine`` for the parameters and errors."""
    return OnnxRuntimeEngine(path, threads, provider)


class OnnxRuntimeEngine:
    """One ``onnxruntime.InferenceSession``; its ``run`` may be called from several threads."""

    name = NAME

    def __init__(self, path: Path, threads: int, provider: str) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise EngineUnavailable(
                f"onnxruntime cannot be imported: {error}",
                "Install it again: pip install --force-reinstall onnxruntime",
            ) from error
        self.threads = threads
        onnxruntime.set_default_logger_severity(3)  # its warnings are for graph authors; errors are raised
        wanted = choose_providers(provider, onnxruntime.get_available_providers())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that spin between runs burn a small machine's cores and disturb its other work.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if wanted != [_PROVIDERS["cpu"]] and provider != "auto":
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=wanted)
        except Exception as error:  # the library raises plain RuntimeError kin for every cause
            raise _open_error(path, provider, error) from error
        self._session = session
        self.provider = str(session.get_providers()[0])
        if provider != "auto" and self.provider != _PROVIDERS[provider]:
            raise ProviderUnavailable(
                f"provider {provider!r} was asked for, but {self.provider} came up",
                "See 'mri-edge doctor' for what works here",
            )
        self.input = _spec(session.get_inputs()[0], path)
        self.output = _spec(session.get_outputs()[0], path)

    def run(self, batch: Batch) -> Probabilities:
        """uint8 (N, H, W, 3) RGB -> float32 (N, classes); see ``Engine.run``."""
        check_batch(batch, self.input)
        if len(batch) == 0:  # some kernels refuse empty tensors
            return np.empty((0, self.output.shape[1] or 0), np.float32)
        try:
            result = self._session.run(None, {self.input.name: batch})[0]
        except Exception as error:
            raise EngineError(f"onnxruntime failed on a batch of {len(batch)}: {_first_line(error)}") from error
        return np.asarray(result, np.float32)

    def close(self) -> None:
        """Drop the session, and with it its threads and memory."""
        del self._session


def choose_providers(wanted: str, installed: list[str]) -> list[str]:
    """ONNX Runtime's names to ask for, best first.

    Raises
    ------
    ProviderUnavailable
        An explicit provider that the installed wheel does not contain.
    """
    if wanted == "auto":
        return [_PROVIDERS[name] for name in _AUTO if _PROVIDERS[name] in installed]
    name = _PROVIDERS[wanted]
    if name not in installed:
        raise ProviderUnavailable(
            f"provider {wanted!r}: the installed onnxruntime wheel has no {name}, it has {', '.join(installed)}",
            _WHEELS.get(wanted, "Install a wheel of ONNX Runtime that has it"),
        )
    return [name]


_GPU_WHEEL = "pip uninstall onnxruntime, then pip install 'mri-edge[gpu]' (on a Jetson: NVIDIA's own wheel)"
_WHEELS = {
    "cuda": _GPU_WHEEL,
    "tensorrt": _GPU_WHEEL,
    "openvino": "Use --engine openvino ('mri-edge[openvino]'), or onnxruntime-openvino in place of onnxruntime",
    "coreml": "The macOS wheel of onnxruntime has it",
    "directml": "pip uninstall onnxruntime, then pip install onnxruntime-directml (Windows)",
}


def _spec(node: Any, path: Path) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else None for size in node.shape)
    if node.type not in _DTYPES or len(shape) < 2:
        raise EngineError(
            f"{path.name}: tensor {node.name!r} is {node.type} {node.shape}, not uint8 pixels or float32 probabilities",
            "Export the model with 'mri-edge export'",
        )
    return TensorSpec(node.name, _DTYPES[node.type], shape)


def _open_error(path: Path, provider: str, error: Exception) -> EngineError:
    if provider in ("auto", "cpu"):
        return EngineError(f"{path.name}: onnxruntime cannot open it: {_first_line(error)}", "Export the model again")
    return ProviderUnavailable(
        f"provider {provider!r} did not come up: {_first_line(error)}", "See 'mri-edge doctor' for what works here"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
