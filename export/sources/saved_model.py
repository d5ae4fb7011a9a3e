"""Open TensorFlow's SavedModel as a Keras model."""

from __future__ import annotations

from pathlib import Path

import keras

from mri_edge.errors import ConversionError, first_line

from .saved_model_check import check_saved_model


def load_saved_model(folder: Path, height: int, width: int, original: Path | None = None) -> keras.Model:
    """Open TensorFlow's SavedModel as a Keras model from float32 (N, height, width, 3) to its one output.

    Parameters
    ----------
    original
        The folder that messages and the model's name refer to, if ``folder`` is a copy of it.

    Raises
    ------
    BundleError
        Not a SavedModel, or one that does more than compute.
    ConversionError
        It has no signature of one image input and one output.
    """
    check_saved_model(folder)
    original = original or folder
    for endpoint in ("serve", "serving_default"):
        try:
            layer = keras.layers.TFSMLayer(str(folder), call_endpoint=endpoint)
            pixels = keras.Input((height, width, 3))
            answer = layer(pixels)
        except Exception as error:  # noqa: BLE001 (Keras lets ValueError, OSError, KeyError, TypeError and more through)
            reason = error
            continue
        outputs = keras.tree.flatten(answer)
        if len(outputs) != 1:
            raise ConversionError(
                f"{original}: its signature {endpoint!r} has {len(outputs)} outputs, one is supported"
            )
        return keras.Model(pixels, outputs[0], name=original.name)
    raise ConversionError(
        f"{original}: no SavedModel with a signature for float32 (N, {height}, {width}, 3) ({first_line(reason)})",
        "Save it with model.export",
    ) from reason
