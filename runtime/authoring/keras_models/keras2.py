"""Rewrite the description of a model that Keras 2 saved so that Keras 3 reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# Arguments that Keras 2 wrote and Keras 3 does not take, by class. A depthwise convolution of Keras 2 is a
# Conv2D underneath, and some releases wrote that one's arguments too; they have no effect.
_OF_THE_BASE = ("groups", "filters", "kernel_initializer", "kernel_regularizer", "kernel_constraint")
_DROPPED = {
    "DepthwiseConv1D": _OF_THE_BASE,
    "DepthwiseConv2D": _OF_THE_BASE,
    "SeparableConv1D": ("groups", *_OF_THE_BASE[2:]),
    "SeparableConv2D": ("groups", *_OF_THE_BASE[2:]),
    "Conv1DTranspose": ("groups",),
    "Conv2DTranspose": ("groups",),
}
# TensorFlow operations with a number, as Keras 2 recorded `preprocess_input(x)` and arithmetic in a model:
# name -> (scale, offset) of the Rescaling that does the same.
_ARITHMETIC: dict[str, Callable[[float], tuple[float, float]]] = {
    "math.truediv": lambda y: (1 / y, 0.0),
    "math.divide": lambda y: (1 / y, 0.0),
    "math.multiply": lambda y: (y, 0.0),
    "math.subtract": lambda y: (1.0, -y),
    "math.add": lambda y: (1.0, y),
    "__operators__.add": lambda y: (1.0, y),
}


def modernised(config: Any) -> Any:
    """The same description without what only Keras 2 knows and without losses; of Keras 3 nothing else changes."""
    if isinstance(config, list):
        return [modernised(item) for item in config]
    if not isinstance(config, dict):
        return config
    item = {key: modernised(value) for key, value in config.items() if key != "compile_config"}
    name, inner = item.get("class_name"), item.get("config")
    if not isinstance(name, str) or not isinstance(inner, dict):
        return item
    if name == "Policy":
        return inner.get("name")
    if name == "TFOpLambda":
        return _rescaling(item, inner)
    for key in _DROPPED.get(name, ()):
        inner.pop(key, None)
    if name == "BatchNormalization" and isinstance(inner.get("axis"), list) and len(inner["axis"]) == 1:
        inner["axis"] = inner["axis"][0]
    if isinstance(inner.get("layers"), list):
        if name == "Sequential":
            _give_an_input(inner["layers"])
        else:
            _count_calls_from_zero(inner)
            _take_single_ends_out_of_lists(inner)
    return item


def _rescaling(item: dict[str, Any], inner: dict[str, Any]) -> dict[str, Any]:
    """A Rescaling in the place of an operation with one number; any other comes back as it was."""
    try:
        [[source, call, tensor, arguments]] = item["inbound_nodes"]
        scale, offset = _ARITHMETIC[inner["function"]](float(arguments["y"]))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return item
    return {
        "class_name": "Rescaling",
        "config": {"name": item.get("name"), "dtype": inner.get("dtype", "float32"), "scale": scale, "offset": offset},
        "name": item.get("name"),
        "inbound_nodes": [[[source, call, tensor, {}]]],
    }


def _give_an_input(layers: list[Any]) -> None:
    """Write the shape of the pictures, which Keras 2 kept in the first layer, as a layer of its own."""
    first = layers[0].get("config") if layers and isinstance(layers[0], dict) else None
    if not isinstance(first, dict) or "batch_input_shape" not in first:
        return
    shape = first.pop("batch_input_shape")
    if layers[0].get("class_name") == "InputLayer":
        first["batch_shape"] = shape
    else:
        layers.insert(0, {"class_name": "InputLayer", "config": {"batch_shape": shape, "name": "input"}})


def _count_calls_from_zero(inner: dict[str, Any]) -> None:
    """Renumber the calls of models inside a model: Keras 2 counts their making as call 0, Keras 3 does not.

    Only Keras 2 writes a call as a list ``[layer, call, tensor, arguments]``.
    """
    layers = [layer for layer in inner["layers"] if isinstance(layer, dict)]
    nested = {layer.get("name") for layer in layers if _counts_its_making(layer)}
    for layer in layers:
        for calls in layer.get("inbound_nodes") or ():
            for call in calls if isinstance(calls, list) else ():
                if isinstance(call, list) and len(call) == 4 and call[0] in nested and isinstance(call[1], int):
                    call[1] -= 1


def _counts_its_making(layer: dict[str, Any]) -> bool:
    inner = layer.get("config")
    layers = inner.get("layers") if isinstance(inner, dict) else None
    if not isinstance(layers, list) or not layers:
        return False
    return layer.get("class_name") != "Sequential" or layers[0].get("class_name") == "InputLayer"


def _take_single_ends_out_of_lists(inner: dict[str, Any]) -> None:
    """Let a model of one output give a tensor: Keras 3 lets one whose output is listed give a list of one."""
    for key in ("input_layers", "output_layers"):
        ends = inner.get(key)
        if isinstance(ends, list) and len(ends) == 1 and isinstance(ends[0], list):
            inner[key] = ends[0]
