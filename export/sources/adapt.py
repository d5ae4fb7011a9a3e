"""Put layers around a model made elsewhere, so that it takes RGB pixels of one size and gives probabilities."""

from __future__ import annotations

from typing import Any, Literal, get_args

import keras
import numpy as np

from mri_edge.errors import ConversionError
from mri_edge.scans.preprocessing import Preprocessing

Activation = Literal["softmax", "sigmoid"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)

# Weights of red, green and blue in gray: ITU-R BT.601, which Pillow's mode "L" and Keras' color_mode="grayscale" use.
_LUMA = (0.299, 0.587, 0.114)


def adapt(model: Any, preprocessing: Preprocessing, activation: Activation | None) -> Any:
    """Return a Keras model with the layers that ``model`` needs in front and behind, or ``model`` if it needs none.

    An input of one channel gets the gray value of the RGB pixels. An input of any size gets the size of the
    preprocessing. ``activation`` turns logits into probabilities.

    Raises
    ------
    ConversionError
        The preprocessing of a gray input differs between the channels, or the activation does not suit the output.
    """
    if len(model.inputs) != 1 or len(model.outputs) != 1 or len(model.inputs[0].shape) != 4:
        return model  # check_classifier refuses it
    _, height, width, channels = model.inputs[0].shape
    if activation is None and channels == 3 and None not in (height, width):
        return model
    entry = keras.Input((preprocessing.height, preprocessing.width, 3), name=f"{model.name}_image")
    hidden = entry
    if channels == 1:
        _check_same_for_each_channel(model, preprocessing)
        order = slice(None, None, -1 if preprocessing.channel_order == "BGR" else 1)
        gray = keras.layers.Conv2D(1, 1, use_bias=False, trainable=False, name=f"{model.name}_gray")
        hidden = gray(hidden)
        gray.set_weights([np.array(_LUMA[order], np.float32).reshape(1, 1, 3, 1)])
    try:
        [answer] = keras.tree.flatten(model(hidden))
    except ValueError:  # the model takes another size or number of channels: check_classifier refuses it
        return model
    if activation is not None:
        _check_activation(model, answer, activation)
        answer = keras.layers.Activation(activation, dtype="float32", name=f"{model.name}_probabilities")(answer)
    return keras.Model(entry, answer, name=model.name)


def _check_same_for_each_channel(model: Any, preprocessing: Preprocessing) -> None:
    if len({*preprocessing.mean}) > 1 or len({*preprocessing.deviation}) > 1:
        raise ConversionError(
            f"{model.name}: takes gray pictures, but the preprocessing has different values for the channels. "
            f"Received: mean {preprocessing.mean}, deviation {preprocessing.deviation}",
            "Repeat the value of the gray channel three times",
        )


def _check_activation(model: Any, answer: Any, activation: Activation) -> None:
    if (answer.shape[1] == 1) != (activation == "sigmoid"):
        needed = "sigmoid" if answer.shape[1] == 1 else "softmax"
        raise ConversionError(
            f"{model.name}: has {answer.shape[1]} outputs, which --activation {activation} does not suit",
            f"Use --activation {needed}",
        )
    if (applied := last_activation(model)) in ACTIVATIONS:
        raise ConversionError(f"{model.name}: its last layer applies {applied} already", "Leave out --activation")


def last_activation(model: Any) -> str:
    """The name of the activation of the last layer, or the name of the layer's class if it has none."""
    last = model.layers[-1]
    while hasattr(last, "layers"):
        last = last.layers[-1]
    return str(getattr(getattr(last, "activation", None), "__name__", type(last).__name__.lower()))
