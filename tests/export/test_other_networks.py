"""Artifacts of networks with unusual layers give the probabilities that Keras gives."""

from __future__ import annotations

import numpy as np
import pytest

from mri_edge.engines import open_engine
from mri_edge.export.calibration.calibrator import Calibrator
from mri_edge.export.calibration.images import pictures_in, record
from mri_edge.export.formats import find_format
from mri_edge.scans.preprocessing import Preprocessing

PLAIN = Preprocessing(32, 32)
LARGEST = {
    "float32": 1e-5,
    "float16": 5e-3,
    "int8": 0.1,
}  # largest |Δp|: the gate's limit, and five times its limit of the mean


def network(kind):
    import keras

    keras.utils.set_random_seed(2)
    layers = keras.layers
    entry = keras.Input((32, 32, 3))
    hidden = layers.Conv2D(8, 3, padding="same")(entry)
    if kind == "two ReLUs":
        hidden = layers.ReLU()(layers.Activation("relu")(hidden))
    elif kind == "resized":
        hidden = layers.UpSampling2D(interpolation="bilinear")(hidden)
    elif kind == "shared layer":
        shared = layers.Conv2D(8, 3, padding="same", activation="relu", bias_initializer="random_normal")
        hidden = shared(layers.MaxPooling2D()(shared(hidden)))
    elif kind == "ConvNeXt block":
        branch = layers.Conv2D(8, 7, padding="same", groups=8)(hidden)
        branch = layers.Dense(16, activation="gelu")(layers.LayerNormalization(epsilon=1e-6)(branch))
        hidden = layers.Add()([hidden, layers.Dense(8)(branch)])
    hidden = layers.GlobalAveragePooling2D()(hidden)
    return keras.Model(entry, layers.Dense(2, activation="softmax")(hidden))


@pytest.mark.parametrize("kind", ["two ReLUs", "resized", "shared layer", "ConvNeXt block"])
@pytest.mark.parametrize("name", ["onnx", "onnx-fp16", "onnx-int8", "tflite", "tflite-int8"])
def test_artifact_agrees_with_keras(kind, name, pictures, tmp_path):
    from mri_edge.authoring.quiet import quiet
    from mri_edge.export.formats import Conversion
    from mri_edge.export.sources.device_graph import device_graph

    model, target = network(kind), find_format(name)
    files = tuple(path for path, _ in pictures_in(pictures))[::4]
    with quiet():
        conversion = Conversion(device_graph(model, PLAIN), 1, Calibrator(files, PLAIN, record(files, "minmax", 0)))
        content, _ = target.convert(conversion)
    (tmp_path / target.FILE).write_bytes(content)
    pixels = np.random.default_rng(0).integers(0, 200, (6, 32, 32, 3), dtype=np.uint8)
    engine = open_engine(tmp_path / target.FILE, provider="cpu")
    answer = engine.run(pixels)
    engine.close()
    expected = np.asarray(model(PLAIN.normalize(pixels), training=False))
    assert np.abs(answer - expected).max() <= LARGEST[target.PRECISION]
