"""Integer quantization of a TFLite model for accelerators that compute integers of fixed shapes only.

The Edge TPU compiler needs constant tensor sizes, constant parameters and 8-bit tensors (coral.ai: "TensorFlow models
on the Edge TPU"). It was made before TensorFlow gave dense layers a scale per output, so these have one. Compilers for
other NPUs ask for the same. Nothing here was tested on an accelerator.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mri_edge.errors import ConversionError
from mri_edge.export.calibration.calibrator import SEARCHED, Calibrator, Recipe
from mri_edge.export.formats import Converted

from .convert import BuiltinOperator, float_activations, operator_code, read, set_constant, write
from .quantize import observer, quantize_with


def quantize_for_accelerators(content: bytes, calibrator: Calibrator) -> Converted:
    """The file of a float one with integers only and a batch size of 1, and facts about how it was made.

    Raises
    ------
    ConversionError
        TensorFlow has no integer form of an operator.
    """
    observed = calibrator.observe(observer(content), channel_axis=-1)

    def build(recipe: Recipe) -> Converted:
        quantized, facts = quantize_with(content, observed, recipe.method, for_accelerators=True)
        return _with_fixed_shapes(quantized), {**facts, "target": "accelerator"}

    all_integer = tuple(recipe for recipe in SEARCHED if not recipe.first_in_float)
    return calibrator.build_best(build, content, ".tflite", all_integer)


def _with_fixed_shapes(content: bytes) -> bytes:
    """Set every batch size to 1, and check that no operator reads or writes floats."""
    model = read(content)
    [subgraph] = model.subgraphs
    _check_integers(model, subgraph)
    for tensor in subgraph.tensors:
        tensor.shapeSignature = None
    for operator in subgraph.operators:
        if operator_code(model, operator) == BuiltinOperator.RESHAPE:
            shape = np.array(subgraph.tensors[int(operator.outputs[0])].shape, np.int32)
            if len(operator.inputs) == 2:
                set_constant(model, subgraph.tensors[int(operator.inputs[1])], shape)
            if operator.builtinOptions is not None:
                operator.builtinOptions.newShape = shape
    _drop_unused_tensors(subgraph)
    return write(model)


def _check_integers(model: Any, subgraph: Any) -> None:
    floats = set(float_activations(model))
    kinds = {value: name for name, value in vars(BuiltinOperator).items() if isinstance(value, int)}
    computing = sorted(
        {
            kinds[operator_code(model, operator)]
            for operator in subgraph.operators
            if floats.intersection(map(int, (*operator.inputs, *operator.outputs)))
        }
    )
    if computing:
        raise ConversionError(
            f"TFLite has no integer form of {', '.join(computing)}, which an accelerator would need",
            "Choose tflite-int8, which may keep operators in float",
        )


def _drop_unused_tensors(subgraph: Any) -> None:
    """Remove tensors that no operator touches, such as the float pixels that quantization made superfluous."""
    used = {int(index) for operator in subgraph.operators for index in (*operator.inputs, *operator.outputs)}
    used |= {int(index) for index in (*subgraph.inputs, *subgraph.outputs)}
    kept = sorted(used - {-1})
    position = {old: new for new, old in enumerate(kept)} | {-1: -1}
    subgraph.tensors = [subgraph.tensors[index] for index in kept]
    for holder in (*subgraph.operators, subgraph):
        holder.inputs = [position[int(index)] for index in holder.inputs]
        holder.outputs = [position[int(index)] for index in holder.outputs]
