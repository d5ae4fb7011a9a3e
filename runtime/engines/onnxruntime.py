"""ONNX Runtime: ``.onnx`` files on the CPU and on its GPU and NPU execution providers."""

from __future__ import annotations

import logging
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from mri_edge.bundles.manifest import TensorSpec
from mri_edge.errors import EngineError, EngineUnavailable, OutputError, ProviderUnavailable, UsageError, first_line

from . import Batch, ModelFile, Outputs, Probabilities, check_batch, check_model, empty_outputs
from ._nvidia import NO_GPU, explain, gpu_name

NAME = "onnxruntime"
SUFFIXES = (".onnx",)
EXTRA = ""  # a plain dependency
MODULE = "onnxruntime"
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

_log = logging.getLogger(__name__)

# ONNX type names; onnxruntime names the same types in its own way.
_DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}


def missing() -> str | None:
    """Why this engine cannot run here, or None."""
    return None if find_spec("onnxruntime") else "the package onnxruntime is not installed"


def open(model: ModelFile, *, threads: int, provider: str = "auto") -> OnnxRuntimeEngine:
    """Open an ONNX file; see ``engines.open_engine`` for the parameters and errors."""
    return OnnxRuntimeEngine(model, threads, provider)


class OnnxRuntimeEngine:
    """One ``onnxruntime.InferenceSession``; its ``run`` may be called from several threads."""

    name = NAME

    def __init__(self, model: ModelFile, threads: int, provider: str) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise EngineUnavailable(
                f"onnxruntime cannot be imported: {error}",
                "Install it again: pip install --force-reinstall onnxruntime",
            ) from error
        self.threads = threads
        onnxruntime.disable_telemetry_events()  # on Windows they go another way than mri_edge/__init__ shuts
        # It would log to stderr what is raised here as errors, and warnings that are for graph authors.
        onnxruntime.set_default_logger_severity(4)
        self._session = _open_session(onnxruntime, model, threads, provider)
        self.provider = str(self._session.get_providers()[0])
        try:
            specs = [
                [_spec(node) for node in nodes()] for nodes in (self._session.get_inputs, self._session.get_outputs)
            ]
        except UnicodeDecodeError as error:
            raise EngineError(f"{model.name}: names of its tensors are no UTF-8", "Export the model again") from error
        self.input, self.outputs = check_model(model.name, *specs)

    def run(self, batch: Batch) -> Probabilities:
        """uint8 (N, H, W, 3) RGB -> float32 (N, classes); see ``Engine.run``."""
        return self.run_all(batch)[self.outputs[0].name]

    def run_all(self, batch: Batch) -> Outputs:
        """Every output by its name; see ``Engine.run_all``."""
        check_batch(batch, self.input)
        if len(batch) == 0:
            return empty_outputs(self.outputs)
        names = [one.name for one in self.outputs]
        try:
            return dict(zip(names, self._session.run(names, {self.input.name: batch}), strict=True))
        except Exception as error:
            raise EngineError(f"onnxruntime failed on a batch of {len(batch)}: {first_line(error)}") from error

    def close(self) -> None:
        """Drop the session, and with it its threads and memory."""
        self._session = None


def choose_providers(wanted: str, installed: list[str]) -> list[str]:
    """Our names of the providers to try, one after the other, best first.

    Parameters
    ----------
    wanted
        ``"auto"`` or one of ``PROVIDERS``.
    installed
        ONNX Runtime's names of those that its wheel was built with.

    Raises
    ------
    ProviderUnavailable
        An explicit provider that the installed wheel does not contain.
    """
    if wanted == "auto":
        return [name for name in _AUTO if _PROVIDERS[name] in installed]
    if _PROVIDERS[wanted] not in installed:
        raise ProviderUnavailable(
            f"provider {wanted!r}: the installed onnxruntime wheel has no {_PROVIDERS[wanted]}",
            _WHEELS.get(wanted, "Install a wheel of ONNX Runtime that has it"),
        )
    return [wanted]


def engine_cache(model: ModelFile) -> Path:
    """Folder of the TensorRT engines built from a model file: its hash, the GPU and the version name it."""
    from mri_edge.device.dirs import cache_folder
    from mri_edge.device.machine import installed

    version = "-".join(installed(PACKAGES).values())
    return cache_folder() / "tensorrt" / f"{model.sha256[:32]}-{gpu_name()}-{version}"


_DOCTOR = "See 'mri-edge doctor' for what works here"
# No extra of ours: pip would bring the plain wheel back, whose files overwrite this one's.
_GPU_WHEEL = "pip uninstall onnxruntime, then pip install 'onnxruntime-gpu[cuda,cudnn]' (a Jetson: deploy/jetson.md)"
_WHEELS = {
    "cuda": _GPU_WHEEL,
    "tensorrt": _GPU_WHEEL,
    "openvino": "Use --engine openvino ('mri-edge[openvino]'), or onnxruntime-openvino in place of onnxruntime",
    "coreml": "The macOS wheel of onnxruntime has it",
    "directml": "pip uninstall onnxruntime, then pip install onnxruntime-directml (Windows)",
}


def _open_session(onnxruntime: Any, model: ModelFile, threads: int, provider: str) -> Any:
    """The session on the first provider that really comes up, alone."""
    names = choose_providers(provider, onnxruntime.get_available_providers())
    for name in names[:-1]:
        try:
            return _session_on(onnxruntime, model, threads, name)
        except ProviderUnavailable as error:
            _log.info("%s", error)
    return _session_on(onnxruntime, model, threads, names[-1])


def _session_on(onnxruntime: Any, model: ModelFile, threads: int, provider: str) -> Any:
    name = _PROVIDERS[provider]
    settings = _tensorrt_settings(model) if provider == "tensorrt" else {}
    if provider in ("cuda", "tensorrt") and hasattr(onnxruntime, "preload_dlls"):
        with redirect_stdout(StringIO()):  # it prints what it does not find; _why_not says it better
            onnxruntime.preload_dlls()
    try:
        session = onnxruntime.InferenceSession(
            model.content,
            _options(onnxruntime, threads, strict=provider != "cpu"),
            providers=[(name, settings)],
            enable_fallback=0,  # else it retries on the CPU, and says so on stdout
        )
    except Exception as error:  # the library raises plain RuntimeError kin for every cause
        if provider == "cpu":
            raise EngineError(
                f"{model.name}: onnxruntime cannot open it: {first_line(error)}", "Export the model again"
            ) from error
        reason, cure = _why_not(onnxruntime, model, provider) or (first_line(error), _DOCTOR)
        raise ProviderUnavailable(f"provider {provider!r} did not come up: {reason}", cure) from error
    found = session.get_providers()[0]
    if found != name:
        reason, cure = _why_not(onnxruntime, model, provider) or (f"{found} came up", _DOCTOR)
        raise ProviderUnavailable(f"provider {provider!r} did not come up: {reason}", cure)
    session._model_bytes = None  # kept for its own fallback, which is off: as much memory as the file is long
    return session


def _tensorrt_settings(model: ModelFile) -> dict[str, str]:
    try:
        cache = engine_cache(model)
        if NO_GPU not in cache.name and not any(cache.glob("*.engine")):
            _log.warning("TensorRT builds its engine now, which takes minutes; 'mri-edge warmup' does it ahead")
            cache.mkdir(parents=True, exist_ok=True)
    except (OSError, UsageError, OutputError) as error:  # no home, or one that may not be written
        _log.warning("TensorRT's engine cannot be kept, so each start builds it anew: %s", error)
        return {}
    return {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(cache)}


def _options(onnxruntime: Any, threads: int, *, strict: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Threads that spin between runs burn a small machine's cores and disturb its other work.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if strict:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def _why_not(onnxruntime: Any, model: ModelFile, provider: str) -> tuple[str, str] | None:
    """Reason and cure of a provider that failed strictly, or None where only the library's words are left."""
    libraries = Path(onnxruntime.__file__).parent / "capi"
    if provider in ("cuda", "tensorrt") and (found := explain(provider, libraries)):
        return found
    try:
        lenient = onnxruntime.InferenceSession(
            model.content, _options(onnxruntime, 1, strict=False), providers=[_PROVIDERS[provider]], enable_fallback=0
        )
    except Exception:  # noqa: BLE001 (it fails leniently too: the first error stands)
        return None
    if lenient.get_providers()[0] == _PROVIDERS[provider]:
        return "it cannot run the whole model: parts would run on the CPU", "Try another --artefact, float32 for one"
    return None


def _spec(node: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else None for size in node.shape)
    return TensorSpec(node.name, _DTYPES.get(node.type, node.type), shape)
