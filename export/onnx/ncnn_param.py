"""Convert an ONNX model to ncnn with pnnx, a program in the Python package of the same name.

The network takes float pixels by channel, (3, height, width) from 0 to 255, as ``ncnn::Mat::from_pixels`` gives them.
"""

from __future__ import annotations

import subprocess
import tempfile
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto, helper

from mri_edge.engines._archive import write_parts
from mri_edge.engines.ncnn import INPUT_LINE, OUTPUT, PARTS
from mri_edge.errors import ConversionError
from mri_edge.export.sources.device_graph import INPUT

from .convert import consumers, finalize

_HINT = "Choose other formats with --formats"
_TIMEOUT = 600  # seconds


def to_ncnn(model: ModelProto) -> bytes:
    """The archive with ``.param`` and ``.bin`` in float32 of a float model whose only output is the probabilities.

    Raises
    ------
    ConversionError
        pnnx does not know an operation of the model.
    """
    height, width = (size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim[1:3])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(_with_float_planes(model), path)
        try:
            subprocess.run(  # noqa: S603
                [str(_program()), str(path), f"inputshape=[1,3,{height},{width}]f32", "fp16=0"],
                cwd=folder,
                capture_output=True,
                timeout=_TIMEOUT,
                check=True,
            )
            parts = [(Path(folder) / f"model.ncnn.{suffix}").read_bytes() for suffix in ("param", "bin")]
        except (OSError, subprocess.SubprocessError) as error:
            raise ConversionError(f"pnnx cannot convert this model ({type(error).__name__})", _HINT) from error
    description = parts[0].decode()
    kinds = {line.split()[0] for line in description.splitlines()[2:] if line.strip()}
    # pnnx leaves operations that ncnn lacks as they are in PyTorch or ONNX, such as ``Tensor.to``.
    if unknown := sorted(kind for kind in kinds if "." in kind):
        raise ConversionError(f"ncnn has no layer for {', '.join(unknown)} of this model", _HINT)
    return write_parts(dict(zip(PARTS, (_with_names(description, height, width).encode(), parts[1]), strict=True)))


def _program() -> Path:
    """The program in the package. Importing the package would need PyTorch; the program needs nothing."""
    spec = find_spec("pnnx")
    if spec is None or not spec.submodule_search_locations:
        raise ConversionError("the package pnnx is not installed", "pip install --no-deps pnnx")
    folder = Path(spec.submodule_search_locations[0])
    return next(path for path in (folder / "pnnx.exe", folder / "pnnx") if path.is_file())


def _with_float_planes(model: ModelProto) -> ModelProto:
    """A copy whose input is float32 (1, 3, height, width), because ncnn has no uint8 tensors and no batches."""
    planar = deepcopy(model)
    [entry] = planar.graph.input
    dims = [size.dim_value for size in entry.type.tensor_type.shape.dim]
    readers = consumers(planar, INPUT)
    if [node.op_type for node in readers] == ["Transpose"]:
        [transpose] = readers
        planar.graph.node.remove(transpose)
        cast_from, order = transpose.output[0], None
    else:
        cast_from, order = INPUT, (0, 2, 3, 1)
    casts = consumers(planar, cast_from)
    if [node.op_type for node in casts] != ["Cast"]:
        raise ConversionError("ncnn: the model does not start with a cast of the pixels", _HINT)
    [cast] = casts
    planar.graph.node.remove(cast)
    if order is None:
        for node in planar.graph.node:
            node.input[:] = [INPUT if name == cast.output[0] else name for name in node.input]
    else:
        planar.graph.node.append(helper.make_node("Transpose", [INPUT], [cast.output[0]], perm=order, name="by_pixel"))
    shape = (1, dims[3], dims[1], dims[2])
    planar.graph.input[0].CopyFrom(helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, shape))
    return finalize(planar)


def _with_names(description: str, height: int, width: int) -> str:
    """Name the blobs of input and output as in the other formats, and record the size of the input."""
    lines = description.splitlines()
    renamed = {"in0": INPUT, "out0": OUTPUT}
    for index, line in enumerate(lines):
        if line.split()[:1] == ["Input"]:
            lines[index] = INPUT_LINE.format(width=width, height=height)
        elif len(line.split()) > 4:
            kind, name, inputs, outputs, *rest = line.split()
            blobs = int(inputs) + int(outputs)
            rest[:blobs] = [renamed.get(blob, blob) for blob in rest[:blobs]]
            lines[index] = " ".join((kind, name, inputs, outputs, *rest))
    return "\n".join(lines) + "\n"
