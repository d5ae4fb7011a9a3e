"""ncnn: the archive holds what ncnn's own API reads, and what ncnn lacks is named."""

from __future__ import annotations

import io
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mri_edge.engines import open_engine
from mri_edge.errors import ConversionError
from mri_edge.export.formats import Conversion, find_format, missing_packages
from mri_edge.export.sources.device_graph import device_graph
from mri_edge.scans.preprocessing import Preprocessing

pytestmark = pytest.mark.skipif(bool(missing_packages("ncnn")), reason="ncnn and pnnx are optional")

IMAGENET = Preprocessing(32, 32, mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225))


def network(*, activation=None, start="convolution"):
    import keras

    keras.utils.set_random_seed(6)
    layers = keras.layers
    entry = keras.Input((32, 32, 3))
    # Without a convolution at the start, the preprocessing stays a part of the graph.
    hidden = layers.MaxPooling2D()(entry) if start == "pooling" else entry
    stem = layers.Conv2D(8, 3, padding="same", activation="relu")(hidden)
    branch = layers.ReLU(6.0)(layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same")(stem)))
    weights = layers.Dense(8, activation="sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(branch))
    hidden = layers.Add()([stem, layers.Multiply()([branch, weights])])
    if activation is not None:
        hidden = layers.Activation(activation)(hidden)
    return keras.Model(entry, layers.Dense(3, activation="softmax")(layers.Flatten()(layers.MaxPooling2D()(hidden))))


@pytest.mark.parametrize(
    ("start", "preprocessing"),
    [
        ("convolution", IMAGENET),
        ("convolution", Preprocessing(32, 32, channel_order="BGR")),
        ("pooling", IMAGENET),
        ("pooling", Preprocessing(32, 32)),
    ],
)
def test_engine_gives_the_answers_of_keras(start, preprocessing, tmp_path):
    model = network(start=start)
    path = tmp_path / "model.ncnn.zip"
    path.write_bytes(find_format("ncnn").convert(Conversion(device_graph(model, preprocessing), None))[0])
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    engine = open_engine(path)
    assert engine.name == "ncnn"
    answer = engine.run(pixels)
    engine.close()
    expected = np.asarray(model(preprocessing.normalize(pixels), training=False))
    assert answer.dtype == np.float32
    assert np.abs(answer - expected).max() < 1e-5


def test_unpacked_archive_is_run_by_ncnn_alone(tmp_path):
    import ncnn

    model = network()
    convert = find_format("ncnn").convert
    content, _ = convert(Conversion(device_graph(model, IMAGENET), None))
    assert content == convert(Conversion(device_graph(model, IMAGENET), None))[0]
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(tmp_path)
    pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    net = ncnn.Net()
    net.load_param(str(tmp_path / "model.param"))
    net.load_model(str(tmp_path / "model.bin"))
    extractor = net.create_extractor()
    extractor.input("pixels", ncnn.Mat.from_pixels(pixels, ncnn.Mat.PixelType.PIXEL_RGB, 32, 32))
    _, answer = extractor.extract("probabilities")
    expected = np.asarray(model(IMAGENET.normalize(pixels[None]), training=False))[0]
    assert np.abs(np.array(answer) - expected).max() < 1e-2  # ncnn may compute in float16 or bfloat16


def test_an_operation_that_ncnn_lacks_is_named(monkeypatch):
    """pnnx writes an operation that ncnn lacks as it is in PyTorch, and does not fail."""

    def fake(command, *, cwd, **_options):
        (Path(cwd) / "model.ncnn.param").write_text("7767517\n2 2\nInput in0 0 1 in0\nTensor.to to 1 1 in0 out0\n")
        (Path(cwd) / "model.ncnn.bin").write_bytes(b"")

    conversion = Conversion(device_graph(network(), IMAGENET), None)
    monkeypatch.setattr(subprocess, "run", fake)
    with pytest.raises(ConversionError, match=r"ncnn has no layer for Tensor\.to of this model"):
        find_format("ncnn").convert(conversion)


def test_a_crash_of_pnnx_is_a_refusal():
    """A sort has no ONNX form that pnnx can read."""
    import keras

    model = network(activation=lambda values: keras.ops.sort(values, axis=-1))
    with pytest.raises(ConversionError, match="pnnx cannot convert this model"):
        find_format("ncnn").convert(Conversion(device_graph(model, IMAGENET), None))
