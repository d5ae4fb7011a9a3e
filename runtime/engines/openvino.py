"""OpenVINO: runs ``.onnx`` files and its own IR on the CPUs that its plugin supports."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from mri_edge.bundles.manifest import TensorSpec
from mri_edge.errors import EngineError, EngineUnavailable, first_line

from . import (
    Batch,
    Engine,
    ModelFile,
    Outputs,
    check_batch,
    check_cpu_only,
    check_model,
    empty_outputs,
    unless_closed,
)

NAME = "openvino"
SUFFIXES = (".onnx", ".openvino.zip")
EXTRA = "openvino"
MODULE = "openvino"
PACKAGES = ("openvino",)
PROVIDERS = ("cpu",)
# In a forked child its scheduler, TBB, waits for threads of the parent, so that opening a model sometimes hangs.
OPENS_AFTER_FORK = False
# The members of an ``.openvino.zip``: OpenVINO's intermediate representation (IR), description and weights.
IR_FILES = ("model.xml", "model.bin")


def missing() -> str | None:
    """Return the reason why this engine cannot run on this machine, or None."""
    return None if find_spec("openvino") else "the package openvino is not installed"


def open(model: ModelFile, *, threads: int, provider: str = "auto") -> OpenVINOEngine:
    """Open an ONNX file or an archive with IR; see ``engines.open_engine`` for the parameters and errors."""
    return OpenVINOEngine(model, threads, provider)


class OpenVINOEngine(Engine):
    """One compiled model. Each run uses its own request, so that several threads may call it."""

    name = NAME

    def __init__(self, model: ModelFile, threads: int, provider: str) -> None:
        check_cpu_only(NAME, provider)
        try:
            import openvino
        except ImportError as error:
            raise EngineUnavailable(
                f"openvino cannot be imported: {error}", "Install it again: pip install 'mri-edge[openvino]'"
            ) from error
        settings: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            # By default OpenVINO computes float32 in bfloat16 if the CPU can. Parity was not tested with that.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        try:
            core = openvino.Core()
            self._compiled: Any = core.compile_model(_read_model(openvino, core, model), "CPU", settings)
            specs = [_spec(port) for port in self._compiled.inputs], [_spec(port) for port in self._compiled.outputs]
        except EngineError:
            raise
        except Exception as error:  # RuntimeError, or UnicodeDecodeError if its message is not UTF-8
            raise EngineError(
                f"{model.name}: OpenVINO cannot open it: {first_line(error)}", "Export the model again"
            ) from error
        # Reuse idle requests: creating one takes 0.1 ms, a third of a small network's time.
        self._free: list[Any] = []
        self.threads = threads
        self.provider = "OpenVINO " + ",".join(self._compiled.get_property("EXECUTION_DEVICES"))
        self.input, self.outputs = check_model(model.name, *specs)

    def run_outputs(self, batch: Batch, names: Sequence[str]) -> Outputs:
        """Return some outputs by name; see ``Engine.run_outputs``."""
        check_batch(batch, self.input)
        if len(batch) == 0:
            return empty_outputs(self.outputs, names)
        compiled = unless_closed(self._compiled)
        try:
            try:
                request = self._free.pop()  # atomic, so that no other thread takes the same request
            except IndexError:
                request = compiled.create_infer_request()
            # Without copies: those of the outputs that nobody wants, and of the batch, take a fifth of a small
            # network's time. The call returns when it has computed, so the batch is not changed meanwhile.
            results = request.infer(batch, share_inputs=True, share_outputs=True)
        except Exception as error:
            raise EngineError(f"OpenVINO failed on a batch of {len(batch)}: {first_line(error)}") from error
        outputs = {
            spec.name: np.array(results[index], np.float32)
            for index, spec in enumerate(self.outputs)
            if spec.name in names
        }
        self._free.append(request)  # after the copy, because the next run overwrites its results
        return outputs

    def close(self) -> None:
        """Release the compiled model and its requests with their threads and memory."""
        self._compiled, self._free = None, []


def _read_model(openvino: Any, core: Any, model: ModelFile) -> Any:
    """Read an ONNX file or the IR in an archive. Raises EngineError for an archive with other members."""
    if model.name.endswith(".onnx"):
        return core.read_model(model.content)
    from ._archive import read_parts

    description, weights = read_parts(model.name, model.content, IR_FILES)
    return core.read_model(description, openvino.Tensor(np.frombuffer(weights, np.uint8)))


def _spec(port: Any) -> TensorSpec:
    shape = tuple(size.get_length() if size.is_static else None for size in port.get_partial_shape())
    return TensorSpec(port.get_any_name(), np.dtype(port.get_element_type().to_dtype()).name, shape)
