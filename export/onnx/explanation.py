"""Add outputs to an ONNX classifier: the means of its last feature map, and what each position of it contributes.

The contributions are HiResCAM (Draelos and Carin, arXiv 2011.08891): the gradient of a label's log-odds, times the
feature map A, at each position, summed over channels. Grad-CAM, which averages the gradient over positions first, is
wrong for a head that flattens A: its gradient differs between positions.

A is followed by a small head of dense layers with ReLU, whose gradient has a closed form, so it becomes part of the
graph. It reads the kernels that the head reads, so the file does not grow, also if they are quantized. Runtimes that
compute only the requested outputs do not spend time on it (ONNX Runtime: ``only_execute_path_to_fetches``).
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
CONTRIBUTIONS = "contributions"
EXPLAINED = "explained"
PREFIX = "explanation/"  # of every node that is added; quantization leaves these in float
_FLATTENING = ("Reshape", "Flatten", "Squeeze")
_POOLS = ("MaxPool", "AveragePool")
_MUCH = np.float32(1e4)  # subtracted from a logit to leave it out of a softmax; float16 can hold it


def with_explanation(model: ModelProto, label: int | None) -> ModelProto:
    """Return a copy of a float ``model`` (NCHW inside) with two or three more outputs.

    ``features`` is float32 (N, channels), the mean of each channel of the last feature map; ``contributions`` float32
    (N, h, w), gradient times activation at each of its positions, in log-odds of the label with index ``label``. If
    ``label`` is None, they are about the most probable label of each image, and ``explained``, float32 (N), gives its
    index.

    Raises
    ------
    ConversionError
        Between the last feature map and the softmax is something other than flattening, dense layers, ReLU and pooling
        whose windows do not overlap; or no feature map has several positions.
    """
    explained = deepcopy(model)
    _Explanation(explained).write(label)
    onnx.checker.check_model(explained, full_check=True)
    return explained


class _Explanation:
    """Walk from the probabilities back to the last feature map, and write the gradient on the way."""

    def __init__(self, model: ModelProto) -> None:
        self._graph = model.graph
        self._makers: dict[str, NodeProto] = {name: node for node in model.graph.node for name in node.output}
        self._constants, self._shapes = constants(model), shapes(model)
        self._written = 0

    def write(self, label: int | None) -> None:
        probabilities = self._graph.output[0]
        softmax = self._makers[probabilities.name]
        if softmax.op_type != "Softmax":
            raise _unknown(softmax)
        one_hot = np.eye(probabilities.type.tensor_type.shape.dim[1].dim_value, dtype=np.float32)
        if label is None:
            best = self._add("ArgMax", softmax.input[0], axis=1, keepdims=0)
            chosen = self._add("Gather", self._constant(one_hot), best)
            self._add("Cast", best, output=EXPLAINED, to=TensorProto.FLOAT)
        else:
            chosen = self._constant(one_hot[label : label + 1])
        # log-odds = z_c - log(sum of exp(z) over the other labels), so its gradient is one_hot - softmax(others).
        left_out = self._add("Mul", chosen, self._constant(_MUCH))
        others = self._add("Softmax", self._add("Sub", softmax.input[0], left_out), axis=1)
        node, gradient = self._through_head(self._before(softmax), self._add("Sub", chosen, others))
        feature_map = node.input[0]
        # The input of a pooling has its channels second; the input of a flatten may not.
        if node.op_type != "GlobalAveragePool" and not self._channels_second(feature_map):
            raise _unknown(node)
        contributions = self._contributions(node, feature_map, gradient)
        while (maker := self._makers.get(feature_map)) and maker.op_type in _POOLS:
            contributions = self._before_pooling(maker, contributions)
            feature_map = maker.input[0]
        if self._positions(feature_map) < 2:
            raise _unknown(node)
        self._finish(feature_map, contributions)
        if label is None:
            self._graph.output.append(helper.make_tensor_value_info(EXPLAINED, TensorProto.FLOAT, ["N"]))

    def _through_head(self, node: NodeProto, gradient: str) -> tuple[NodeProto, str]:
        """Write the gradient of the dense layers. Return the node that flattens the feature map, and its gradient."""
        while node.op_type in ("Gemm", "MatMul", "Add", "Relu"):
            if not self._constants.keys() >= set(node.input[1:]):  # the other operand is another branch
                raise _unknown(node)
            before = self._before(node)
            if node.op_type == "Relu":
                active = self._add("Greater", node.output[0], self._constant(np.float32(0)))
                gradient = self._add("Mul", gradient, self._add("Cast", active, to=TensorProto.FLOAT))
            elif node.op_type != "Add":  # adding a bias leaves the gradient as it is
                gradient = self._add("Gemm", gradient, node.input[1], transB=int(not _transposed(node)))
            node = before
        while node.op_type in (*_FLATTENING, "Transpose") and self._positions(node.input[0]) == 1:
            node = self._before(node)
        if node.op_type not in ("Reshape", "Flatten", "GlobalAveragePool"):
            raise _unknown(node)
        return node, gradient

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

    def _contributions(self, node: NodeProto, feature_map: str, gradient: str) -> str:
        """Gradient times activation, float32 (N, channels, h, w), of the map that ``node`` flattens or averages."""
        _, channels, height, width = self._shapes[feature_map]
        if node.op_type == "GlobalAveragePool":
            gradient = self._add("Div", gradient, self._constant(np.float32(height * width)))
            gradient = self._add("Reshape", gradient, self._constant(np.array([-1, channels, 1, 1], np.int64)))
        else:
            gradient = self._add("Reshape", gradient, self._constant(np.array([-1, channels, height, width], np.int64)))
        return self._add("Mul", feature_map, gradient)

    def _before_pooling(self, pooling: NodeProto, contributions: str) -> str:
        """Give the contribution of each window to the positions that made its value: evenly among equal maxima.

        For a mean, that is in proportion to the activations.
        """
        size, inside = self._windows(pooling), pooling.input[0]
        if pooling.op_type == "MaxPool":
            largest = self._enlarged(pooling.output[0], size)
            made = self._add("GreaterOrEqual", inside, largest)
            weight = self._add("Cast", made, to=TensorProto.FLOAT)
            mean = self._add("AveragePool", weight, kernel_shape=size, strides=size)
        else:
            weight, mean = inside, pooling.output[0]
        # A mean of 0 has no contribution to give. float16 can hold this number.
        mean = self._add("Add", mean, self._constant(np.float32(1e-6)))
        each = self._add("Div", contributions, mean)
        each = self._add("Div", each, self._constant(np.float32(size[0] * size[1])))
        return self._add("Mul", self._enlarged(each, size), weight)

    def _windows(self, pooling: NodeProto) -> list[int]:
        """Window size of a pooling whose windows tile the map; ConversionError for another."""
        found = {attribute.name: attribute for attribute in pooling.attribute}
        size = list(found["kernel_shape"].ints)
        inside, outside = self._shapes.get(pooling.input[0], []), self._shapes.get(pooling.output[0], [])
        tiles = len(inside) == 4 and [outside[2] * size[0], outside[3] * size[1]] == inside[2:]
        if not tiles or list(found["strides"].ints if "strides" in found else [1, 1]) != size:
            raise _unknown(pooling)
        return size

    def _enlarged(self, name: str, size: list[int]) -> str:
        """Repeat each value of a map over its window."""
        scales = self._constant(np.array([1, 1, *size], np.float32))
        return self._add(
            "Resize",
            name,
            "",
            scales,
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )

    def _finish(self, feature_map: str, contributions: str) -> None:
        _, channels, height, width = self._shapes[feature_map]
        self._add("ReduceSum", contributions, self._constant(np.array([1])), keepdims=0, output=CONTRIBUTIONS)
        self._add("ReduceMean", feature_map, axes=[2, 3], keepdims=0, output=FEATURES)
        self._graph.output.extend(
            [
                helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["N", channels]),
                helper.make_tensor_value_info(CONTRIBUTIONS, TensorProto.FLOAT, ["N", height, width]),
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


def _transposed(dense: NodeProto) -> bool:
    """Whether a dense layer stores its kernel as (outputs, inputs)."""
    return any(attribute.name == "transB" and attribute.i for attribute in dense.attribute)


def _unknown(node: NodeProto) -> ConversionError:
    return ConversionError(
        f"the head of this network cannot be explained: it contains {node.op_type}",
        "Contributions are written for pooling, flattening, dense layers with ReLU, and softmax",
    )
