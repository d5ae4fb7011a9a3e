"""ONNX Runtime: runs ``.onnx`` files on the CPU and on its GPU and NPU execution providers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from mri_edge.bundles.manifest import TensorSpec
from mri_edge.errors import EngineError, EngineUnavailable, OutputError, ProviderUnavailable, UsageError, first_line

from . import Batch, Engine, ModelFile, Outputs, check_batch, check_model, empty_outputs, unless_closed
from ._nvidia import NO_GPU, explain, gpu_name

NAME = "onnxruntime"
SUFFIXES = (".onnx",)
EXTRA = ""  # onnxruntime is a dependency of the package
MODULE = "onnxruntime"
PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")

_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
}
PROVIDERS = tuple(_PROVIDERS)
# Without TensorRT: it takes minutes to build an engine, so it must be requested.
_AUTO = ("cuda", "coreml", "directml", "openvino", "cpu")

_log = logging.getLogger(__name__)

# Type names of onnxruntime and of NumPy.
_DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}


def missing() -> str | None:
    """Return the reason why this engine cannot run on this machine, or None."""
    return None if find_spec("onnxruntime") else "the package onnxruntime is not installed"


def open(model: ModelFile, *, threads: int, provider: str = "auto") -> OnnxRuntimeEngine:
    """Open an ONNX file; see ``engines.open_engine`` for the parameters and errors."""
    return OnnxRuntimeEngine(model, threads, provider)


class OnnxRuntimeEngine(Engine):
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
        onnxruntime.disable_telemetry_events()  # on Windows, mri_edge/__init__ cannot disable it
        # Do not log to stderr: errors are raised as exceptions, and warnings are meant for authors of graphs.
        onnxruntime.set_default_logger_severity(4)
        self._session = _open_session(onnxruntime, model, threads, provider)
        self.provider = str(self._session.get_providers()[0])
        # Otherwise every run computes all outputs, and most runs need no contributions.
        self._run_options = onnxruntime.RunOptions()
        self._run_options.only_execute_path_to_fetches = True
        try:
            specs = [
                [_spec(node) for node in nodes()] for nodes in (self._session.get_inputs, self._session.get_outputs)
            ]
        except UnicodeDecodeError as error:
            raise EngineError(f"{model.name}: its tensor names are not UTF-8", "Export the model again") from error
        self.input, self.outputs = check_model(model.name, *specs)

    def run_outputs(self, batch: Batch, names: Sequence[str]) -> Outputs:
        """Return some outputs by name; see ``Engine.run_outputs``."""
        check_batch(batch, self.input)
        if len(batch) == 0:
            return empty_outputs(self.outputs, names)
        session = unless_closed(self._session)
        try:
            return dict(zip(names, session.run(names, {self.input.name: batch}, self._run_options), strict=True))
        except Exception as error:
            raise EngineError(f"onnxruntime failed on a batch of {len(batch)}: {first_line(error)}") from error

    def close(self) -> None:
        """Release the session with its threads and memory."""
        self._session = None


def choose_providers(wanted: str, installed: list[str]) -> list[str]:
    """Return the providers to try in turn, best first.

    Parameters
    ----------
    wanted
        ``"auto"`` or one of ``PROVIDERS``.
    installed
        ONNX Runtime's names of the providers in the installed wheel.

    Raises
    ------
    ProviderUnavailable
        The installed wheel does not contain the requested provider.
    """
    if wanted == "auto":
        return [name for name in _AUTO if _PROVIDERS[name] in installed]
    if _PROVIDERS[wanted] not in installed:
        raise ProviderUnavailable(
            f"provider {wanted!r}: the installed onnxruntime wheel has no {_PROVIDERS[wanted]}",
            _WHEELS.get(wanted, "Install a wheel of ONNX Runtime that has it"),
        )
    return [wanted]


def _engine_cache(model: ModelFile) -> Path:
    """Return the folder of TensorRT engines for a model file, the GPU and the version of ONNX Runtime."""
    from mri_edge.device.dirs import cache_folder
    from mri_edge.device.machine import installed

    version = "-".join(installed(PACKAGES).values())
    return cache_folder() / "tensorrt" / f"{model.sha256[:32]}-{gpu_name()}-{version}"


_TENSORRT_FILES = "TensorRT runs what 'mri-edge export BUNDLE --formats onnx-fp16,onnx-int8-symmetric' makes"
_DOCTOR = "See 'mri-edge doctor' for what works on this machine"
# It is not an extra of this package, because pip would also install the CPU wheel, which overwrites its files.
_GPU_WHEEL = "pip uninstall onnxruntime, then pip install 'onnxruntime-gpu[cuda,cudnn]' (a Jetson: deploy/jetson.md)"
_WHEELS = {
    "cuda": _GPU_WHEEL,
    "tensorrt": _GPU_WHEEL,
    "openvino": "Use --engine openvino ('mri-edge[openvino]'), or onnxruntime-openvino in place of onnxruntime",
    "coreml": "The macOS wheel of onnxruntime contains it",
    "directml": "pip uninstall onnxruntime, then pip install onnxruntime-directml (Windows)",
}


def _open_session(onnxruntime: Any, model: ModelFile, threads: int, provider: str) -> Any:
    """Open the session on the first provider that starts."""
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
        with redirect_stdout(StringIO()):  # it prints which libraries are missing; _explain_failure reports them
            onnxruntime.preload_dlls()
    try:
        session = onnxruntime.InferenceSession(
            model.content,
            _options(onnxruntime, threads, strict=provider != "cpu"),
            providers=[(name, settings)],
            enable_fallback=0,  # otherwise it retries on the CPU and prints that on stdout
        )
    except Exception as error:  # the library raises RuntimeError and its subclasses for every cause
        if provider == "cpu":
            raise EngineError(
                f"{model.name}: onnxruntime cannot open it: {first_line(error)}", "Export the model again"
            ) from error
        reason, fix = _explain_failure(onnxruntime, model, provider) or (first_line(error), _DOCTOR)
        raise ProviderUnavailable(f"provider {provider!r} did not start: {reason}", fix) from error
    found = session.get_providers()[0]
    if found != name:
        reason, fix = _explain_failure(onnxruntime, model, provider) or (f"{found} started", _DOCTOR)
        raise ProviderUnavailable(f"provider {provider!r} did not start: {reason}", fix)
    # A private attribute, read only by the disabled fallback (tested with onnxruntime 1.32). It keeps the whole file.
    session._model_bytes = None
    return session


def _tensorrt_settings(model: ModelFile) -> dict[str, str]:
    try:
        cache = _engine_cache(model)
        if NO_GPU not in cache.name and not any(cache.glob("*.engine")):
            _log.warning("TensorRT builds its engine now, which takes minutes; 'mri-edge warmup' does it in advance")
            cache.mkdir(parents=True, exist_ok=True)
    except (OSError, UsageError, OutputError) as error:  # no home folder, or a read-only one
        _log.warning("TensorRT's engine cannot be cached, so every start builds it again: %s", error)
        return {}
    return {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(cache)}


def _options(onnxruntime: Any, threads: int, *, strict: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Threads that spin between runs take CPU time from other programs, and while a model is opened from the thread that
    # opens it. Within a run they may spin, because waking them for each layer takes longer than the layer.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", "200")
    if strict:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def _explain_failure(onnxruntime: Any, model: ModelFile, provider: str) -> tuple[str, str] | None:
    """Find out why a provider did not start: return reason and fix, or None if only the library's message is known."""
    libraries = Path(onnxruntime.__file__).parent / "capi"
    if provider in ("cuda", "tensorrt") and (found := explain(provider, libraries)):
        return found
    try:
        lenient = onnxruntime.InferenceSession(
            model.content, _options(onnxruntime, 1, strict=False), providers=[_PROVIDERS[provider]], enable_fallback=0
        )
    except Exception:  # noqa: BLE001 (the lenient session fails too: report the first error)
        return None
    if lenient.get_providers()[0] == _PROVIDERS[provider]:
        fix = _TENSORRT_FILES if provider == "tensorrt" else "Try another --artifact, such as float32"
        return "it cannot run the whole model: parts would run on the CPU", fix
    return None


def _spec(node: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else None for size in node.shape)
    return TensorSpec(node.name, _DTYPES.get(node.type, node.type), shape)
