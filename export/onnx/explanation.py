"""Add two outputs to an ONNX classifier: the means of its last feature map, and Grad-CAM of the positive label.

Grad-CAM (Selvaraju et al., ICCV 2017) weights the channels of the last feature map A by the mean
gradient of the class's logit, and keeps the positive part of the weighted sum. A is followed by a small
head of dense layers with ReLU, whose gradient has a closed form, so it becomes part of the graph.

It costs little, because only the *mean over positions* of the gradient is needed. The sum over
positions is computed here, once, for the kernel of the head's first layer (512 x 256 numbers in the
reference network instead of 8192 x 256). A pooling between A and the head needs no gradient of its
own: if its windows do not overlap, it only moves each gradient to one position of its window.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from mri_edge.errors import ConversionError

from .convert import constants, shapes

FEATURES = "features"
ACTIVATION = "activation"
PREFIX = "explanation/"  # of every node that is added; quantization leaves these in float
_FLATTENING = ("Reshape", "Flatten", "Squeeze")


def with_explanation(model: ModelProto, positive: int) -> ModelProto:
    """A copy of a float ``model`` (NCHW inside) with two more outputs.

    ``features`` is float32 (N, channels), the mean of each channel of the last feature map;
    ``activation`` float32 (N, h, w), Grad-CAM of label ``positive``, at least 0, in logits.

    Raises
    ------
    ConversionError
        Between the last feature map and the softmax is something other than pooling, flattening, dense
        layers and ReLU; or no feature map has several positions.
    """
    explained = deepcopy(model)
    _Explanation(explained).write(positive)
    onnx.checker.check_model(explained, full_check=True)
    return explained


class _Explanation:
    """Walk from the probabilities back to the last feature map, and write the gradient on the way."""

    def __init__(self, model: ModelProto) -> None:
        self._graph = model.graph
        self._makers: dict[str, NodeProto] = {name: node for node in model.graph.node for name in node.output}
        self._constants, self._shapes = constants(model), shapes(model)
        self._written = 0

    def write(self, positive: int) -> None:
        probabilities = self._graph.output[0]
        softmax = self._makers[probabilities.name]
        if softmax.op_type != "Softmax":
            raise _unknown(softmax)
        chosen = np.zeros((1, probabilities.type.tensor_type.shape.dim[1].dim_value), np.float32)
        chosen[0, positive] = 1
        gradient, node = self._constant(chosen), self._before(softmax)
        while node.op_type in ("Gemm", "MatMul", "Add", "Relu"):
            if not self._constants.keys() >= set(node.input[1:]):  # the other operand is another branch
                raise _unknown(node)
            before = self._before(node)
            if node.op_type == "Relu":
                active = self._add("Greater", node.output[0], self._constant(np.float32(0)))
                gradient = self._add("Mul", gradient, self._add("Cast", active, to=TensorProto.FLOAT))
            elif node.op_type != "Add":  # adding a bias leaves the gradient as it is
                gradient = self._add("Gemm", gradient, self._kernel(node, before), transB=1)
            node = before
        while node.op_type in (*_FLATTENING, "Transpose") and self._positions(node.input[0]) == 1:
            node = self._before(node)
        if node.op_type not in ("Reshape", "Flatten", "GlobalAveragePool"):
            raise _unknown(node)
        feature_map = node.input[0]
        while (maker := self._makers.get(feature_map)) and maker.op_type in ("MaxPool", "AveragePool"):
            node, feature_map = maker, maker.input[0]
        # The input of a pooling has its channels second; the input of a flatten may not.
        if self._positions(feature_map) < 2 or (node.op_type in _FLATTENING and not self._channels_second(feature_map)):
            raise _unknown(node)
        self._finish(feature_map, gradient)

    def _before(self, node: NodeProto) -> NodeProto:
        """The node that makes the first input of another; ConversionError if that is a constant or the pixels."""
        if node.input[0] not in self._makers:
            raise _unknown(node)
        return self._makers[node.input[0]]

    def _positions(self, name: str) -> int:
        """Number of positions in a map (N, channels, h, w): 1 if all axes but one are 1, 0 if it is not a map."""
        shape = self._shapes.get(name, [])
        if len(shape) != 4 or not all(shape[1:]):
            return 0
        return 1 if sorted(shape[1:])[1] == 1 else shape[2] * shape[3]

    def _channels_second(self, name: str) -> bool:
        """Whether a map comes from a convolution or pooling, without a node that moves axes in between."""
        while (maker := self._makers.get(name)) and maker.op_type not in ("Conv", "MaxPool", "AveragePool"):
            if maker.op_type in (*_FLATTENING, "Transpose", "Unsqueeze"):
                return False
            name = maker.input[0]
        return maker is not None

    def _kernel(self, dense: NodeProto, before: NodeProto) -> str:
        """Kernel of a dense layer, (inputs, outputs), summed over positions if the layer follows a flatten."""
        kernel = self._constants[dense.input[1]]
        if any(attribute.name == "transB" and attribute.i for attribute in dense.attribute):
            kernel = kernel.T
        if before.op_type in ("Reshape", "Flatten") and self._positions(before.input[0]) > 1:
            channels = self._shapes[before.input[0]][1]
            kernel = kernel.reshape(channels, -1, kernel.shape[1]).sum(axis=1)
        # In float16: eleven bits are enough for a picture, and int8 files stay small.
        return self._add("Cast", self._constant(kernel.astype(np.float16)), to=TensorProto.FLOAT)

    def _finish(self, feature_map: str, gradient: str) -> None:
        _, channels, height, width = self._shapes[feature_map]
        weights = self._add("Div", gradient, self._constant(np.float32(height * width)))
        weights = self._add("Reshape", weights, self._constant(np.array([-1, channels, 1, 1], np.int64)))
        total = self._add(
            "ReduceSum", self._add("Mul", feature_map, weights), self._constant(np.array([1])), keepdims=0
        )
        self._add("Relu", total, output=ACTIVATION)
        self._add("ReduceMean", feature_map, axes=[2, 3], keepdims=0, output=FEATURES)
        self._graph.output.extend(
            [
                helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["N", channels]),
                helper.make_tensor_value_info(ACTIVATION, TensorProto.FLOAT, ["N", height, width]),
            ]
        )

    def _add(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        self._written += 1
        name = f"{PREFIX}{kind}-{self._written}"
        self._graph.node.append(helper.make_node(kind, list(inputs), [output or name], name=name, **attributes))
        return output or name

    def _constant(self, value: Any) -> str:
        self._written += 1
        name = f"{PREFIX}constant-{self._written}"
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name


def _unknown(node: NodeProto) -> ConversionError:
    return ConversionError(
        f"the head of this network cannot be explained: it contains {node.op_type}",
        "Grad-CAM is written for pooling, flattening, dense layers with ReLU, and softmax",
    )
