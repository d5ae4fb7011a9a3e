"""The artifacts of the reference network, VGG16, have the expected sizes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mri_edge.scans.preprocessing import Preprocessing


@pytest.mark.slow
def test_quantized_artifacts_are_a_quarter_of_the_float_ones(tmp_path):
    import keras

    from mri_edge.authoring.quiet import quiet
    from mri_edge.export.calibration.calibrator import Calibrator
    from mri_edge.export.calibration.images import record
    from mri_edge.export.formats import Conversion, find_format, installed_formats
    from mri_edge.export.sources.device_graph import device_graph

    keras.utils.set_random_seed(0)  # the weights have no influence on the sizes
    entry = keras.Input((128, 128, 3))
    body = keras.applications.VGG16(weights=None, include_top=False, input_shape=(128, 128, 3))(entry)
    hidden = keras.layers.Dense(256, activation="relu")(keras.layers.Flatten()(body))
    model = keras.Model(entry, keras.layers.Dense(2, activation="softmax")(hidden))
    assert model.count_params() == 14_714_688 + 2_097_922

    picture = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)).save(picture)
    preprocessing = Preprocessing(channel_order="BGR")
    with quiet():
        conversion = Conversion(
            device_graph(model, preprocessing),
            1,
            Calibrator((picture,), preprocessing, record([picture], "minmax", 0)),
        )
        sizes = {name: len(find_format(name).convert(conversion)[0]) for name in installed_formats()}
    for kind in ("onnx", "tflite"):
        assert sizes[f"{kind}-int8"] <= 0.26 * sizes[kind]
        assert sizes[f"{kind}-fp16"] <= 0.51 * sizes[kind]
    assert sizes["tflite-dynamic"] <= 0.26 * sizes["tflite"]
    assert sizes["onnx-int8"] <= 17.5e6  # the limit for an embedded model
