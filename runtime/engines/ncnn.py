"""ncnn: runs archives with its ``.param`` and ``.bin`` on the CPU. It is small, and common in phone apps."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from mri_edge.bundles.manifest import TensorSpec
from mri_edge.errors import EngineError, EngineUnavailable

from . import (
    Batch,
    Engine,
    ModelFile,
    Outputs,
    Probabilities,
    check_batch,
    check_cpu_only,
    check_model,
    empty_outputs,
    unless_closed,
)

NAME = "ncnn"
SUFFIXES = (".ncnn.zip",)
EXTRA = "ncnn"
MODULE = "ncnn"
PACKAGES = ("ncnn",)
PROVIDERS = ("cpu",)
# In a forked child, OpenMP waits for threads of the parent.
OPENS_AFTER_FORK = False
PARTS = ("model.param", "model.bin")
# The line of the input in the ``.param``. ncnn ignores the sizes, which tell us what to resize a scan to.
INPUT_LINE = "Input pixels 0 1 pixels 0={width} 1={height} 2=3"
OUTPUT = "probabilities"


def missing() -> str | None:
    """Return the reason why this engine cannot run on this machine, or None."""
    return None if find_spec("ncnn") else "the package ncnn is not installed"


def open(model: ModelFile, *, threads: int, provider: str = "auto") -> NcnnEngine:
    """Open an archive; see ``engines.open_engine`` for the parameters and errors."""
    return NcnnEngine(model, threads, provider)


class NcnnEngine(Engine):
    """One network, which takes one image at a time as float32 (3, H, W); a lock guards ``run``."""

    name = NAME
    provider = "ncnn CPU"

    def __init__(self, model: ModelFile, threads: int, provider: str) -> None:
        check_cpu_only(NAME, provider)
        import tempfile

        from ._archive import read_parts

        parts = read_parts(model.name, model.content, PARTS)
        try:
            ncnn = _import_ncnn()
        except ImportError as error:
            raise EngineUnavailable(
                f"ncnn cannot be imported: {error}", "Install it again: pip install 'mri-edge[ncnn]'"
            ) from error
        self._mat = ncnn.Mat
        self._net: Any = ncnn.Net()
        options = self._net.opt
        options.num_threads = threads
        options.use_vulkan_compute = False
        # Parity was tested with float32, and ncnn computes in float16 or bfloat16 if the CPU can.
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
        options.use_bf16_storage = False
        # From files: ncnn reads a model in memory without checking where it ends.
        with tempfile.TemporaryDirectory() as folder:
            paths = [str(Path(folder) / name) for name in PARTS]
            for path, part in zip(paths, parts, strict=True):
                Path(path).write_bytes(part)
            loaded = self._net.load_param(paths[0]) == 0 and self._net.load_model(paths[1]) == 0
        shape = _input_shape(parts[0])
        if not loaded or shape is None or [*self._net.output_names()] != [OUTPUT]:
            raise EngineError(f"{model.name}: ncnn cannot open it", "Export the model again")
        self.threads = threads
        self._lock = threading.Lock()
        pixels = TensorSpec("pixels", "uint8", (1, *shape, 3))
        classes = len(self._answer(self._net, np.zeros((*shape, 3), np.uint8)))
        self.input, self.outputs = check_model(model.name, [pixels], [TensorSpec(OUTPUT, "float32", (1, classes))])

    def run_outputs(self, batch: Batch, names: Sequence[str]) -> Outputs:
        """Return some outputs by name; see ``Engine.run_outputs``."""
        check_batch(batch, self.input)
        if len(batch) == 0:
            return empty_outputs(self.outputs, names)
        with self._lock:
            net = unless_closed(self._net)
            answers = np.stack([self._answer(net, pixels) for pixels in batch])
        return dict.fromkeys(names, answers)

    def close(self) -> None:
        """Release the network with its memory."""
        self._net = None

    def _answer(self, net: Any, pixels: Batch) -> Probabilities:
        """Probabilities of one image (H, W, 3), float32 (classes,)."""
        planes = np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32)
        extractor = net.create_extractor()
        # A copy of its own: where the first layer works in place, ncnn crashes on memory that it did not allocate.
        if extractor.input("pixels", self._mat(planes).clone()) != 0:
            raise EngineError("ncnn failed: it does not take the pixels", "Export the model again")
        status, answer = extractor.extract(OUTPUT)
        if status != 0:
            raise EngineError(f"ncnn failed on an image (status {status})", "Export the model again")
        return np.array(answer, np.float32)


def _import_ncnn() -> Any:
    """Import ncnn so that its threads sleep between runs. Its OpenMP reads this setting once, when it is loaded."""
    import os

    is_set = "OMP_WAIT_POLICY" in os.environ
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        import ncnn
    finally:
        if not is_set:
            del os.environ["OMP_WAIT_POLICY"]
    return ncnn


def _input_shape(description: bytes) -> tuple[int, int] | None:
    """Height and width from the line of the input; None if it is missing."""
    for line in description.decode("utf-8", "replace").splitlines():
        values = line.split()
        if values[:1] == ["Input"] and len(values) >= 7:
            sizes = dict(value.split("=", 1) for value in values[5:] if "=" in value)
            if sizes.get("2") == "3" and all(re.fullmatch("[0-9]{1,5}", sizes.get(key, "")) for key in "01"):
                return int(sizes["1"]), int(sizes["0"])
    return None
