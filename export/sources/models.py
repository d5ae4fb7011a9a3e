"""The model that is exported: opened safely, and asked for its own answers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray

from mri_edge.authoring.keras_file import one_column_a_class
from mri_edge.authoring.keras_models.loading import open_model
from mri_edge.errors import ConversionError, first_line
from mri_edge.scans.preprocessing import Preprocessing

from .saved_model import check_saved_model


def load(path: Path, content: bytes | None = None) -> keras.Model:
    """Open a ``.keras`` or ``.h5`` file, or its ``content``: no code of the file is run.

    Raises
    ------
    BundleError
        Not a Keras model, or one with code in it (a Lambda layer), with layers that Keras does not know, or
        with more weights than its size allows.
    """
    model = open_model(path, keras, content)
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ConversionError(
            f"{path}: has {len(model.inputs)} inputs and {len(model.outputs)} outputs, one of each is supported"
        )
    return model


def load_saved_model(folder: Path, height: int, width: int) -> keras.Model:
    """Open TensorFlow's SavedModel as a Keras model, float32 (N, height, width, 3) -> its one output.

    Raises
    ------
    BundleError
        Not a SavedModel, one that does more than compute, or without a signature of one image input and one output.
    """
    check_saved_model(folder)
    for endpoint in ("serve", "serving_default"):
        try:
            layer = keras.layers.TFSMLayer(str(folder), call_endpoint=endpoint)
            pixels = keras.Input((height, width, 3))
            answer = layer(pixels)
        except Exception as error:  # noqa: BLE001 (ValueError, OSError, KeyError, TypeError: whatever it finds)
            reason = error
            continue
        outputs = keras.tree.flatten(answer)
        if len(outputs) != 1:
            raise ConversionError(f"{folder}: its signature {endpoint!r} has {len(outputs)} outputs, one is supported")
        return keras.Model(pixels, outputs[0], name=folder.name)
    raise ConversionError(
        f"{folder}: no SavedModel with a signature for float32 (N, {height}, {width}, 3) ({first_line(reason)})",
        "Save it with model.export",
    ) from reason


def answers(
    model: keras.Model, batches: Iterable[NDArray[np.uint8]], preprocessing: Preprocessing
) -> NDArray[np.float32]:
    """The Keras model's probabilities for pixels uint8 (n, H, W, 3): float32 (N, classes)."""
    rows = []
    for batch in batches:
        row = keras.ops.convert_to_numpy(model(preprocessing.normalise(batch), training=False)).astype(np.float32)
        rows.append(one_column_a_class(row))
    return np.concatenate(rows)
