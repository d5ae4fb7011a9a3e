"""LiteRT (TensorFlow Lite) with XNNPACK: runs ``.tflite`` files on the CPU. It is the small engine for ARM boards."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_edge.bundles.manifest import Quantization, TensorSpec
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

NAME = "litert"
SUFFIXES = (".tflite",)
EXTRA = "litert"
MODULE = "ai_edge_litert.interpreter"
PACKAGES = ("ai-edge-litert",)
PROVIDERS = ("cpu",)


def missing() -> str | None:
    """Return the reason why this engine cannot run on this machine, or None."""
    return None if find_spec("ai_edge_litert") else "the package ai-edge-litert is not installed"


def open(model: ModelFile, *, threads: int, provider: str = "auto") -> LiteRTEngine:
    """Open a TFLite file; see ``engines.open_engine`` for the parameters and errors."""
    return LiteRTEngine(model, threads, provider)


class LiteRTEngine(Engine):
    """One interpreter. Its input is resized to each batch, and it has state, so a lock guards ``run``.

    Files for accelerators have a fixed batch size of 1, so that the images of a batch run one by one.
    """

    name = NAME
    provider = "XNNPACK"

    def __init__(self, model: ModelFile, threads: int, provider: str) -> None:
        check_cpu_only(NAME, provider)
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise EngineUnavailable(
                f"ai-edge-litert cannot be imported: {error}", "Install it again: pip install 'mri-edge[litert]'"
            ) from error
        try:
            # The interpreter uses the weights in these bytes and keeps them until it is closed.
            interpreter = Interpreter(model_content=model.content, num_threads=threads)
            interpreter.allocate_tensors()
            inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
        except (ValueError, RuntimeError) as error:
            raise EngineError(
                f"{model.name}: LiteRT cannot open it: {first_line(error)}", "Export the model again"
            ) from error
        self.threads = threads
        self._interpreter: Any = interpreter
        self._lock = threading.Lock()
        self.input, self.outputs = check_model(
            model.name, [_spec(details) for details in inputs], [_spec(details) for details in outputs]
        )
        self._input_index, self._output_indices = inputs[0]["index"], [details["index"] for details in outputs]
        self._batch = 1

    def run_outputs(self, batch: Batch, names: Sequence[str]) -> Outputs:
        """Return some outputs by name; see ``Engine.run_outputs``."""
        check_batch(batch, self.input)
        if len(batch) == 0:
            return empty_outputs(self.outputs, names)
        parts = [batch] if self.input.shape[0] is None else np.split(batch, len(batch))
        with self._lock:
            interpreter = unless_closed(self._interpreter)
            try:
                results = [self._invoke(interpreter, part) for part in parts]
            except (ValueError, RuntimeError) as error:
                self._batch = 0  # the interpreter may be half resized: allocate again next time
                raise EngineError(f"LiteRT failed on a batch of {len(batch)}: {error}") from error
        columns = [np.concatenate(column) for column in zip(*results, strict=True)]
        outputs = {spec.name: column for spec, column in zip(self.outputs, columns, strict=True)}
        return {name: outputs[name] for name in names}

    def _invoke(self, interpreter: Any, batch: Batch) -> list[NDArray[np.float32]]:
        """Run one batch. Returns the outputs in their order."""
        if len(batch) != self._batch:
            interpreter.resize_tensor_input(self._input_index, batch.shape)
            interpreter.allocate_tensors()
            self._batch = len(batch)
        interpreter.set_tensor(self._input_index, np.ascontiguousarray(batch))
        interpreter.invoke()
        return [
            _values(interpreter.get_tensor(index), spec)
            for index, spec in zip(self._output_indices, self.outputs, strict=True)
        ]

    def close(self) -> None:
        """Release the interpreter with its threads and memory."""
        self._interpreter = None


def _values(tensor: NDArray[Any], spec: TensorSpec) -> NDArray[np.float32]:
    """A copy of an output as float32."""
    values = np.array(tensor, np.float32)
    if spec.quantization is None:
        return values
    result: NDArray[np.float32] = (values - spec.quantization.zero_point) * np.float32(spec.quantization.scale)
    return result


def _spec(details: dict[str, Any]) -> TensorSpec:
    # The shape of a dynamic tensor is that of one image; the signature has -1 for the batch size.
    sizes = [int(size) for size in details["shape"]]
    batch = None if -1 in details["shape_signature"][:1] else sizes[0]
    dtype = np.dtype(details["dtype"]).name
    scale, zero_point = details["quantization"]
    quantization = Quantization(float(scale), int(zero_point)) if dtype == "int8" and scale else None
    return TensorSpec(str(details["name"]), dtype, (batch, *sizes[1:]), quantization)
