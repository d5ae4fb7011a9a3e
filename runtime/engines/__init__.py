"""Inference engines, one file each, found by looking in this folder.

An engine file names itself with ``NAME``, the file suffixes it opens with ``SUFFIXES``, the
extra that installs its library with ``EXTRA``, the library itself with ``MODULE``, the packages
that may bring it (one of them at a time) with ``PACKAGES``, the providers it knows with ``PROVIDERS``, says
with ``missing()`` why it cannot run here (``None`` if it can), and opens an artefact with
``open(model, *, threads, provider, ...)`` from the bytes of a ``ModelFile``. Its library is imported inside
``open`` alone. With ``OPENS_AFTER_FORK = False`` it says that its library cannot start in a child of a process
that used it.
"""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mri_edge.bundles.manifest import Artifact, TensorSpec
from mri_edge.bundles.onnx_external import outside_part
from mri_edge.device.cpu import available_cpus
from mri_edge.device.machine import is_32_bit_arm
from mri_edge.errors import EngineError, EngineUnavailable, InputError, ProviderUnavailable, UsageError, printable

from ._fork import check_opens_here, guard
from ._fork import is_inherited as is_inherited

if TYPE_CHECKING:
    from mri_edge.bundles.bundle import Bundle

Batch = NDArray[np.uint8]
Probabilities = NDArray[np.float32]
Outputs = dict[str, NDArray[np.float32]]

# What --provider takes; each engine file maps those it knows to its library's own names.
PROVIDERS = ("auto", "cpu", "gpu", "cuda", "tensorrt", "openvino", "coreml", "directml")
# What "gpu" stands for: the first of these that comes up. TensorRT builds its engine for minutes, so CUDA is before it.
GPU_PROVIDERS = ("cuda", "tensorrt", "coreml", "directml")
# Other names that people know an engine by: its short name, and that of its files.
ENGINE_ALIASES = {"onnx": "onnxruntime", "ort": "onnxruntime", "tflite": "litert"}


@dataclass(frozen=True)
class ModelFile:
    """A model file as it was read: an engine opens these bytes, so nobody can exchange the file after it was hashed.

    ``name`` is the file's name, for its suffix and for messages; ``sha256`` is of ``content``. Whoever holds a
    ModelFile holds all of its bytes: let go of it when the engine is open.
    """

    name: str
    content: bytes = field(repr=False)
    sha256: str

    @classmethod
    def of(cls, bundle: Bundle, artefact: Artifact) -> ModelFile:
        """Read an artefact of a bundle. Raises IntegrityError if the file was changed."""
        return cls(artefact.file, bundle.read(artefact), artefact.sha256)

    @classmethod
    def read(cls, path: Path) -> ModelFile:
        """Read a file that no manifest vouches for. Raises EngineError if that fails."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise EngineError(f"{path}: cannot read the model ({error.strerror})") from error
        return cls(path.name, content, hashlib.sha256(content).hexdigest())


@runtime_checkable
class Engine(Protocol):
    """An opened artefact.

    ``provider`` is the execution provider that really runs, read back after opening; ``threads``
    the number of intra-op threads; ``input`` and ``outputs`` what the file declares. The first of
    ``outputs`` are the probabilities; an artefact that can explain itself gives ``features`` and
    ``activation`` after them.
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
            The engine failed while it ran.
        """
        ...

    def run_all(self, batch: Batch) -> Outputs:
        """Every output by its name, float32 (N, …) each; errors as for ``run``."""
        ...

    def close(self) -> None:
        """Give back memory and threads; the engine is not used after this. A second call does nothing."""
        ...


class EngineFile(Protocol):
    """The face of one file in this folder."""

    NAME: str
    SUFFIXES: tuple[str, ...]
    EXTRA: str
    MODULE: str
    PACKAGES: tuple[str, ...]
    PROVIDERS: tuple[str, ...]
    missing: Callable[[], str | None]
    open: Callable[..., Engine]


@lru_cache(maxsize=1)
def engine_files() -> dict[str, EngineFile]:
    """All engines by name, usable here or not, in the order in which they are preferred."""
    names = sorted(found.name for found in pkgutil.iter_modules(__path__) if not found.name.startswith("_"))
    modules = [cast(EngineFile, importlib.import_module(f"{__name__}.{name}")) for name in names]
    modules.sort(key=lambda one: (getattr(one, "RANK", 100), one.NAME))
    return {one.NAME: one for one in modules}


def offered() -> list[str]:
    """Names of the engines that have a library: not of the fake one, which is there for tests."""
    return [name for name, one in engine_files().items() if one.MODULE]


def engine_file(name: str) -> EngineFile:
    """One engine by its name or alias. Raises UsageError with the known names."""
    files = engine_files()
    name = ENGINE_ALIASES.get(name, name)
    if name not in files:
        raise UsageError(f"unknown engine {name!r}", f"Engines: {', '.join(offered())}")
    return files[name]


def engine_for(path: str | Path) -> EngineFile:
    """The preferred engine that opens files with this suffix.

    Raises
    ------
    EngineError
        No engine opens such files.
    """
    for one in engine_files().values():
        if str(path).endswith(one.SUFFIXES):
            return one
    raise EngineError(f"{path}: no engine opens such a file", f"Engines: {', '.join(offered())}")


def open_engine(
    model: Path | ModelFile,
    *,
    engine: str | None = None,
    provider: str = "auto",
    threads: int | None = None,
    **options: Any,
) -> Engine:
    """Open an artefact.

    Parameters
    ----------
    model
        The artefact as it was read; a path is read here.
    engine
        Name or alias of an engine; ``None`` takes the preferred one for the suffix.
    provider
        One of ``PROVIDERS``. An explicit one is strict: it comes up or ProviderUnavailable is raised. ``"gpu"`` is
        the first of ``GPU_PROVIDERS`` that comes up.
    threads
        Intra-op threads, at most the cores that this process may use, which ``None`` takes.

    Raises
    ------
    UsageError
        Unknown engine, provider or thread count.
    EngineUnavailable, ProviderUnavailable, EngineError
        The library is missing, the provider did not come up, the file could not be opened.
    """
    name = model.name
    chosen = engine_file(engine) if engine else engine_for(name)
    if not name.endswith(chosen.SUFFIXES):
        raise UsageError(
            f"engine {chosen.NAME!r} opens {', '.join(chosen.SUFFIXES)} files. Received: {name}",
            "Choose another --engine or --artefact",
        )
    if provider not in PROVIDERS:
        raise UsageError(f"unknown provider {provider!r}", f"Providers: {', '.join(PROVIDERS)}")
    check_threads(threads)
    if reason := chosen.missing():
        raise EngineUnavailable(f"engine {chosen.NAME!r} is not usable here: {reason}", remedy(chosen))
    check_opens_here(chosen.NAME, opens_after_fork=getattr(chosen, "OPENS_AFTER_FORK", True))
    if not isinstance(model, ModelFile):
        model = ModelFile.read(model)
    if name.endswith(".onnx"):
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
        f"provider {provider!r}: no GPU came up ({'; '.join(error.problem for error in refused)})", refused[0].hint
    )


def providers_of(file: EngineFile, provider: str) -> list[str]:
    """The providers to try in turn for one of ``PROVIDERS``; an engine that has no GPU refuses the name itself."""
    if provider != "gpu":
        return [provider]
    return [name for name in GPU_PROVIDERS if name in file.PROVIDERS] or [provider]


def check_threads(threads: int | None) -> None:
    """Raise UsageError for a thread count that this process cannot use.

    More threads than cores wait for one another, and thousands of them exhaust memory. A number above is refused, not
    lowered: records of what ran would say another than what was asked for.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1. Received: {threads}")
    if threads is not None and threads > (cores := available_cpus()):
        raise UsageError(
            f"threads must be at most {cores}, the cores that this process may use. Received: {threads}",
            "Leave --threads out to take what suits the model",
        )


def _check_onnx(model: ModelFile) -> None:
    """Whatever opens it, an ONNX file is read whole here first: a library would take other files along unchecked."""
    try:
        outside = outside_part(model.content)
    except ValueError as error:
        raise EngineError(f"{model.name}: cannot open it: {error}", "Export the model again") from error
    if outside:
        raise EngineError(
            f"{model.name}: {printable(outside)} lies in another file, which no hash covers",
            "Save the model with all of its weights inside (onnx.save without external data)",
        )


def remedy(file: EngineFile) -> str:
    """What to do about an engine whose library is missing."""
    if is_32_bit_arm():
        return "No engine has wheels for 32-bit ARM: use a 64-bit system image"
    return f"pip install 'mri-edge[{file.EXTRA}]'" if file.EXTRA else "pip install mri-edge"


def check_cpu_only(engine: str, provider: str) -> None:
    """For an engine that knows the CPU alone: raise ProviderUnavailable if another provider was asked for."""
    if provider not in ("auto", "cpu"):
        raise ProviderUnavailable(
            f"engine {engine!r} runs on the CPU only. Received: --provider {provider}", "Use --engine onnxruntime"
        )


def check_model(
    name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> tuple[TensorSpec, tuple[TensorSpec, ...]]:
    """What the file declares, as its one input and its outputs, of which the first holds the probabilities.

    Raises
    ------
    EngineError
        The model does not take uint8 (N, H, W, 3) or does not give float32 (N, classes).
    """
    hint = "Export the model with 'mri-edge export'"
    if len(inputs) != 1 or inputs[0].dtype != "uint8" or len(inputs[0].shape) != 4 or inputs[0].shape[3] != 3:
        raise EngineError(f"{name}: must take uint8 (N, H, W, 3). It takes: {_told(inputs)}", hint)
    if not outputs or outputs[0].dtype != "float32" or len(outputs[0].shape) != 2:
        raise EngineError(f"{name}: must give float32 (N, classes). It gives: {_told(outputs)}", hint)
    return inputs[0], tuple(outputs)


def nothing(outputs: Sequence[TensorSpec]) -> Outputs:
    """The answer to an empty batch: float32 (0, …) for every output. Some engines refuse such batches."""
    return {one.name: np.empty((0, *(size or 0 for size in one.shape[1:])), np.float32) for one in outputs}


def _told(specs: Sequence[TensorSpec]) -> str:
    sizes = (", ".join("N" if size is None else str(size) for size in one.shape) for one in specs)
    return "; ".join(f"{one.name} {one.dtype} ({size})" for one, size in zip(specs, sizes, strict=True)) or "nothing"


def check_batch(batch: Batch, spec: TensorSpec) -> None:
    """Raise InputError unless ``batch`` is uint8 (N, H, W, 3) as ``spec`` says; N may be 0."""
    if not isinstance(batch, np.ndarray) or batch.dtype != np.uint8 or batch.shape[1:] != spec.shape[1:]:
        received = f"{getattr(batch, 'dtype', type(batch).__name__)} {getattr(batch, 'shape', '')}"
        shape = ", ".join(str(size) for size in spec.shape[1:])
        raise InputError(f"batch must be uint8 (N, {shape}). Received: {received}")
