"""The two functions that use private APIs of TensorFlow and Keras, because no public one does the same.

Tested with TensorFlow 2.21 and Keras 3.15.1.

- ``freeze``: tf2onnx's public ``convert.from_function`` also freezes, but gives nodes other names, which would
  change every ONNX file. TensorFlow's public function needs a session of TensorFlow 1.
- ``first_convolution``: ``Layer.input`` names the first use of a layer only, and ``Model.layers`` does not say
  which layer reads which tensor.
"""

from __future__ import annotations

from typing import Any

import keras
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2


def freeze(function: Any) -> Any:
    """A concrete TensorFlow function with the present values of its variables as constants."""
    return convert_variables_to_constants_v2(function)


def first_convolution(model: keras.Model) -> keras.layers.Conv2D | None:
    """The only layer that reads the model's input, also inside nested models, if it is a plain convolution.

    None if several layers read the input, or if the layer is used twice, grouped or not a ``Conv2D``, because
    factors of the input can be folded only into the kernel of a plain convolution.
    """
    while isinstance(model, keras.Model) and len(model.inputs or ()) == 1:
        # A Sequential keeps its graph in an inner Functional model; the nodes in its layers may be outdated.
        depths = getattr(model, "_functional", model)._nodes_by_depth
        nodes = [node for depth in depths.values() for node in depth]
        users = [node for node in nodes if any(tensor is model.inputs[0] for tensor in node.input_tensors)]
        if len(users) != 1 or sum(node.operation is users[0].operation for node in nodes) != 1:
            return None
        model = users[0].operation
    plain = type(model) is keras.layers.Conv2D and model.groups == 1 and model.data_format == "channels_last"
    return model if plain else None
