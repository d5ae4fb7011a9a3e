"""Rewrite the description of a model that Keras 2 saved so that Keras 3 reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# Arguments that Keras 2 wrote and Keras 3 does not take, by class. In Keras 2 a depthwise convolution is a
# subclass of Conv2D, and some releases wrote the arguments of Conv2D too; they have no effect.
_CONV2D_ARGUMENTS = ("groups", "filters", "kernel_initializer", "kernel_regularizer", "kernel_constraint")
_DROPPED = {
    "DepthwiseConv1D": _CONV2D_ARGUMENTS,
    "DepthwiseConv2D": _CONV2D_ARGUMENTS,
    "SeparableConv1D": ("groups", *_CONV2D_ARGUMENTS[2:]),
    "SeparableConv2D": ("groups", *_CONV2D_ARGUMENTS[2:]),
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


def to_keras3(config: Any) -> Any:
    """Return the description in the form of Keras 3, without losses and the compile configuration."""
    if isinstance(config, list):
        return [to_keras3(item) for item in config]
    if not isinstance(config, dict):
        return config
    item = {key: to_keras3(value) for key, value in config.items() if key != "compile_config"}
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
            _add_input_layer(inner["layers"])
        else:
            _renumber_calls(inner)
            _unwrap_single_ends(inner)
    return item


def _rescaling(item: dict[str, Any], inner: dict[str, Any]) -> dict[str, Any]:
    """Return a Rescaling for an operation with one number, and any other operation unchanged."""
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


def _add_input_layer(layers: list[Any]) -> None:
    """Add an input layer with the shape of the pictures, which Keras 2 stored in the first layer."""
    first = layers[0].get("config") if layers and isinstance(layers[0], dict) else None
    if not isinstance(first, dict) or "batch_input_shape" not in first:
        return
    shape = first.pop("batch_input_shape")
    if layers[0].get("class_name") == "InputLayer":
        first["batch_shape"] = shape
    else:
        layers.insert(0, {"class_name": "InputLayer", "config": {"batch_shape": shape, "name": "input"}})


def _renumber_calls(inner: dict[str, Any]) -> None:
    """Renumber the calls of models inside a model: Keras 2 counts their construction as call 0, Keras 3 does not.

    Only Keras 2 writes a call as a list ``[layer, call, tensor, arguments]``.
    """
    layers = [layer for layer in inner["layers"] if isinstance(layer, dict)]
    nested = {layer.get("name") for layer in layers if _counts_construction(layer)}
    for layer in layers:
        for calls in layer.get("inbound_nodes") or ():
            for call in calls if isinstance(calls, list) else ():
                if isinstance(call, list) and len(call) == 4 and call[0] in nested and isinstance(call[1], int):
                    call[1] -= 1


def _counts_construction(layer: dict[str, Any]) -> bool:
    inner = layer.get("config")
    layers = inner.get("layers") if isinstance(inner, dict) else None
    if not isinstance(layers, list) or not layers:
        return False
    return layer.get("class_name") != "Sequential" or layers[0].get("class_name") == "InputLayer"


def _unwrap_single_ends(inner: dict[str, Any]) -> None:
    """Make a model with one output return a tensor: if the output is in a list, Keras 3 returns a list."""
    for key in ("input_layers", "output_layers"):
        ends = inner.get(key)
        if isinstance(ends, list) and len(ends) == 1 and isinstance(ends[0], list):
            inner[key] = ends[0]
