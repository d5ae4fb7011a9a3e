"""Define the protocol of inference engines, and a registry of the files in this folder, one for each engine.

An engine file defines

- ``NAME``, which is the name of the file; ``SUFFIXES`` of the model files that it opens, and its ``PROVIDERS``,
- ``MODULE``, its library; ``PACKAGES`` that contain it (one is installed at a time); ``EXTRA`` that installs it,
- ``missing()``, which returns the reason why it cannot run on this machine, or None,
- ``open(model, *, threads, provider)``, which opens the bytes of a ``ModelFile``. Only this imports the library,
- ``OPENS_AFTER_FORK = False`` if its library cannot start in a forked child of a process that used it.
"""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mri_edge.bundles.bundle import Bundle, check_self_contained
from mri_edge.bundles.manifest import Artifact, TensorSpec
from mri_edge.bundles.onnx_external import find_external_data
from mri_edge.device.cpu import available_cpus
from mri_edge.device.machine import is_32_bit_arm
from mri_edge.errors import EngineError, EngineUnavailable, InputError, ProviderUnavailable, UsageError, printable
from mri_edge.records import dataclass

from ._fork import check_opens_here, guard
from ._fork import is_inherited as is_inherited

Batch = NDArray[np.uint8]
Probabilities = NDArray[np.float32]
Outputs = dict[str, NDArray[np.float32]]

# Values of --provider. Each engine file maps those that it supports to the names in its library.
PROVIDERS = ("auto", "cpu", "gpu", "cuda", "tensorrt", "openvino", "coreml", "directml")
# "gpu" is the first of these that starts. CUDA precedes TensorRT, which takes minutes to build its engine.
_GPU_PROVIDERS = ("cuda", "tensorrt", "coreml", "directml")
# Other names of engines: short names, and the names of their file formats.
ENGINE_ALIASES = {"onnx": "onnxruntime", "ort": "onnxruntime", "tflite": "litert"}
# Engines that are not listed here follow.
_PREFERRED = ("onnxruntime", "litert", "openvino")
_FAKE_ENGINE = "fake"  # mri_edge.testing; it is the last choice


@dataclass(frozen=True)
class ModelFile:
    """The bytes of a model file. Engines open these, so that replacing the file after it was hashed has no effect.

    ``name`` is the file's name, ``sha256`` the hash of ``content``. ``is_self_contained`` says that the content was
    checked for data in other files. Delete a ModelFile when the engine is open, because it keeps all bytes in memory.
    """

    name: str
    content: bytes = field(repr=False)
    sha256: str
    is_self_contained: bool = False

    @classmethod
    def of(cls, bundle: Bundle, artifact: Artifact) -> ModelFile:
        """Read an artifact of a bundle.

        Raises
        ------
        IntegrityError
            The file was changed.
        BundleError
            An ONNX file stores a part of the model in another file.
        """
        content = bundle.read_hashed(artifact)
        is_self_contained = check_self_contained(content, bundle.folder / artifact.file)
        return cls(artifact.file, content, artifact.sha256, is_self_contained)

    @classmethod
    def read(cls, path: Path) -> ModelFile:
        """Read a file that is not part of a bundle. Raises EngineError if it cannot be read."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise EngineError(f"{path}: cannot read the model ({error.strerror})") from error
        return cls(path.name, content, hashlib.sha256(content).hexdigest())


@runtime_checkable
class Engine(Protocol):
    """An opened artifact.

    ``provider`` is the execution provider in use, read back after opening. ``threads`` is the number of intra-op
    threads. ``input`` and ``outputs`` are the tensors that the file declares: the first output is the probabilities,
    which ``run`` gives as float32 also if the file stores them as integers with a ``quantization``;
    ONNX artifacts may also have ``features`` and ``contributions``, and with more than two labels ``explained``, the
    index of the label that the contributions are about.
    """

    name: str
    provider: str
    threads: int
    input: TensorSpec
    outputs: tuple[TensorSpec, ...]

    def run(self, batch: Batch) -> Probabilities:
        """uint8 (N, H, W, 3) RGB -> float32 (N, classes). N may be 0. Safe to call from several threads.

        Raises
        ------
        InputError
            The batch has another dtype or shape.
        EngineError
            The engine failed.
        """
        name = self.outputs[0].name
        return self.run_outputs(batch, [name])[name]

    def run_outputs(self, batch: Batch, names: Sequence[str]) -> Outputs:
        """Return some of the outputs by name, each float32 (N, …); errors as for ``run``."""
        ...

    def close(self) -> None:
        """Release memory and threads; a second call has no effect.

        Another thread may run the engine meanwhile: its run ends as usual or raises EngineError, as every later one.
        """
        ...


class EngineFile(Protocol):
    """What an engine file defines; see the docstring of this package."""

    NAME: str
    SUFFIXES: tuple[str, ...]
    EXTRA: str
    MODULE: str
    PACKAGES: tuple[str, ...]
    PROVIDERS: tuple[str, ...]
    missing: Callable[[], str | None]
    open: Callable[..., Engine]


def _names() -> list[str]:
    found = {file.name for file in pkgutil.iter_modules(__path__) if not file.name.startswith("_")}
    return [*_PREFERRED, *sorted(found.difference(_PREFERRED)), _FAKE_ENGINE]


def _import_engine(name: str) -> EngineFile:
    module = "mri_edge.testing" if name == _FAKE_ENGINE else f"{__name__}.{name}"
    return cast(EngineFile, importlib.import_module(module))


def engines_by_preference() -> Iterator[EngineFile]:
    """Yield all engines, installed or not, the preferred first. Each file is imported when it is reached."""
    return map(_import_engine, _names())


@lru_cache(maxsize=1)
def engine_files() -> dict[str, EngineFile]:
    """Return all engines by name, installed or not, in order of preference; the fake one is last."""
    return {file.NAME: file for file in engines_by_preference()}


def offered() -> list[str]:
    """Return the names of the engines that users can choose: all but the fake one, which has no library."""
    return [name for name, file in engine_files().items() if file.MODULE]


def engine_file(name: str) -> EngineFile:
    """Find an engine by name or alias. Raises UsageError, which lists the known names."""
    name = ENGINE_ALIASES.get(name, name)
    if name not in _names():
        raise UsageError(f"unknown engine {name!r}", f"Engines: {', '.join(offered())}")
    return _import_engine(name)


def engine_for(path: str | Path) -> EngineFile:
    """Return the preferred engine that opens files with this suffix.

    Raises
    ------
    EngineError
        No engine opens files with this suffix.
    """
    for file in engines_by_preference():
        if str(path).endswith(file.SUFFIXES):
            return file
    raise EngineError(f"{path}: no engine opens such a file", f"Engines: {', '.join(offered())}")


def open_engine(
    model: Path | ModelFile,
    *,
    engine: str | None = None,
    provider: str = "auto",
    threads: int | None = None,
    **options: Any,
) -> Engine:
    """Open an artifact.

    Parameters
    ----------
    model
        The artifact's content, or its path.
    engine
        Name or alias of an engine; ``None`` takes the preferred one for the suffix.
    provider
        One of ``PROVIDERS``. ``"auto"`` takes the best that starts; any other starts or raises ProviderUnavailable.
        ``"gpu"`` is the first of ``_GPU_PROVIDERS`` that starts.
    threads
        Intra-op threads, at most the cores that this process may use. ``None``: all of these cores.

    Raises
    ------
    UsageError
        Unknown engine, provider or thread count.
    EngineUnavailable, ProviderUnavailable, EngineError
        The library is not installed, the provider did not start, or the file cannot be opened.
    """
    name = model.name
    chosen = engine_file(engine) if engine else engine_for(name)
    if not name.endswith(chosen.SUFFIXES):
        raise UsageError(
            f"engine {chosen.NAME!r} opens {', '.join(chosen.SUFFIXES)} files. Received: {name}",
            "Choose another --engine or --artifact",
        )
    check_provider(provider)
    check_threads(threads)
    if reason := chosen.missing():
        raise EngineUnavailable(f"engine {chosen.NAME!r} is not usable here: {reason}", remedy(chosen))
    check_opens_here(chosen.NAME, opens_after_fork=getattr(chosen, "OPENS_AFTER_FORK", True))
    if not isinstance(model, ModelFile):
        model = ModelFile.read(model)
    if name.endswith(".onnx") and not model.is_self_contained:
        _check_onnx(model)
    refused: list[ProviderUnavailable] = []
    for wanted in providers_of(chosen, provider):
        try:
            opened = chosen.open(model, threads=threads or available_cpus(), provider=wanted, **options)
        except ProviderUnavailable as error:
            refused.append(error)
        else:
            guard(opened)
            return opened
    if len(refused) == 1:
        raise refused[0]
    raise ProviderUnavailable(
        f"provider {provider!r}: no GPU started ({'; '.join(error.problem for error in refused)})", refused[0].hint
    )


def providers_of(file: EngineFile, provider: str) -> list[str]:
    """Return the providers to try in turn for one of ``PROVIDERS``. Engines without GPU support refuse ``"gpu"``."""
    if provider != "gpu":
        return [provider]
    return [name for name in _GPU_PROVIDERS if name in file.PROVIDERS] or [provider]


def check_provider(provider: str) -> None:
    """Raise UsageError for a name that is none of ``PROVIDERS``."""
    if provider not in PROVIDERS:
        raise UsageError(f"unknown provider {provider!r}", f"Providers: {', '.join(PROVIDERS)}")


def check_threads(threads: int | None) -> None:
    """Raise UsageError for a thread count that this process cannot use.

    More threads than cores only wait for one another, and thousands exhaust memory. If the number were lowered
    silently, records would differ from the request.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1. Received: {threads}")
    if threads is not None and threads > (cores := available_cpus()):
        raise UsageError(
            f"threads must be at most {cores}, the cores that this process may use. Received: {threads}",
            "Leave out --threads to use the default for the model",
        )


def _check_onnx(model: ModelFile) -> None:
    """Refuse an ONNX file that refers to other files: a library would open those unchecked."""
    try:
        part = find_external_data(model.content)
    except ValueError as error:
        raise EngineError(f"{model.name}: cannot open it: {error}", "Export the model again") from error
    if part:
        raise EngineError(
            f"{model.name}: {printable(part)} is stored in another file, which no hash covers",
            "Save the model with all of its weights inside (onnx.save without external data)",
        )


def remedy(file: EngineFile) -> str:
    """Return the hint that says how to install an engine's library."""
    if is_32_bit_arm():
        return "No engine has wheels for 32-bit ARM: use a 64-bit system image"
    return f"pip install 'mri-edge[{file.EXTRA}]'" if file.EXTRA else "pip install mri-edge"


def check_cpu_only(engine: str, provider: str) -> None:
    """Raise ProviderUnavailable for any provider but the CPU. Engines that run only on the CPU call this."""
    if provider not in ("auto", "cpu"):
        raise ProviderUnavailable(
            f"engine {engine!r} runs on the CPU only. Received: --provider {provider}", "Use --engine onnxruntime"
        )


def check_model(
    name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> tuple[TensorSpec, tuple[TensorSpec, ...]]:
    """Check the declared tensors. Return the input, and the outputs with the probabilities first.

    An engine that gives quantized outputs as float32 passes their ``quantization``.

    Raises
    ------
    EngineError
        The model does not take uint8 (N, H, W, 3) or does not give float32 (N, classes).
    """
    hint = "Export the model with 'mri-edge export'"
    if len(inputs) != 1 or inputs[0].dtype != "uint8" or len(inputs[0].shape) != 4 or inputs[0].shape[3] != 3:
        raise EngineError(f"{name}: must take uint8 (N, H, W, 3). It takes: {_describe(inputs)}", hint)
    is_float = bool(outputs) and (outputs[0].dtype == "float32" or outputs[0].quantization is not None)
    if not is_float or len(outputs[0].shape) != 2:
        raise EngineError(f"{name}: must give float32 (N, classes). It gives: {_describe(outputs)}", hint)
    return inputs[0], tuple(outputs)


def empty_outputs(outputs: Sequence[TensorSpec], names: Sequence[str]) -> Outputs:
    """Return some outputs for an empty batch, which some engines refuse: float32 (0, …) each."""
    shapes = {spec.name: spec.shape for spec in outputs}
    return {name: np.empty((0, *(size or 0 for size in shapes[name][1:])), np.float32) for name in names}


def unless_closed(opened: Any) -> Any:
    """Return the library's object that an engine runs. Raises EngineError if ``close`` has replaced it by None.

    A run keeps the returned reference, so that ``close`` in another thread does not end it halfway.
    """
    if opened is None:
        raise EngineError("this engine is closed", "Open it again")
    return opened


def _describe(specs: Sequence[TensorSpec]) -> str:
    sizes = (", ".join("N" if size is None else str(size) for size in spec.shape) for spec in specs)
    return "; ".join(f"{spec.name} {spec.dtype} ({size})" for spec, size in zip(specs, sizes, strict=True)) or "nothing"


def check_batch(batch: Batch, spec: TensorSpec) -> None:
    """Raise InputError unless ``batch`` is uint8 (N, H, W, 3) as in ``spec``. N may be 0."""
    if not isinstance(batch, np.ndarray) or batch.dtype != np.uint8 or batch.shape[1:] != spec.shape[1:]:
        received = f"{getattr(batch, 'dtype', type(batch).__name__)} {getattr(batch, 'shape', '')}"
        shape = ", ".join(str(size) for size in spec.shape[1:])
        raise InputError(f"batch must be uint8 (N, {shape}). Received: {received}")
