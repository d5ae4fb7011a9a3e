"""tflite-int8-full has only what compilers for accelerators accept: integers, constants and fixed shapes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mri_edge.bundles.manifest import Quantization
from mri_edge.engines import open_engine
from mri_edge.errors import ConversionError
from mri_edge.export.calibration.calibrator import Calibrator
from mri_edge.export.calibration.images import pictures_in, record
from mri_edge.export.formats import Conversion, tflite_int8_full
from mri_edge.export.sources.device_graph import device_graph
from mri_edge.export.tflite.convert import BuiltinOperator, operator_code, read
from mri_edge.scans.preprocessing import Preprocessing

IMAGENET = Preprocessing(32, 32, mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225))
_INTEGERS = {2, 3, 9}  # TensorType: INT32, UINT8, INT8
_KINDS = {value: name for name, value in vars(BuiltinOperator).items() if isinstance(value, int)}


def network(head: str):
    """A residual network with a depthwise convolution and one of four heads."""
    import keras

    keras.utils.set_random_seed(5)
    layers = keras.layers
    entry = keras.Input((32, 32, 3))
    stem = layers.Conv2D(8, 3, padding="same", activation="relu", bias_initializer="random_normal")(entry)
    branch = layers.ReLU(6.0)(layers.DepthwiseConv2D(3, padding="same")(stem))
    hidden = layers.MaxPooling2D()(layers.Add()([stem, branch]))
    hidden = layers.Flatten()(hidden) if head == "flatten" else layers.GlobalAveragePooling2D()(hidden)
    hidden = layers.Dense(16, activation="relu", bias_initializer="random_normal")(hidden)
    if head == "averaged":
        heads = [layers.Dense(2, activation="softmax")(hidden) for _ in range(2)]
        return keras.Model(entry, layers.Average()(heads))
    if head == "sigmoid":
        return keras.Model(entry, layers.Dense(1, activation="sigmoid")(hidden))
    return keras.Model(entry, layers.Dense(3 if head == "three" else 2, activation="softmax")(hidden))


@pytest.fixture(scope="module")
def files(pictures):
    return tuple(path for path, _ in pictures_in(pictures))[::4]


@pytest.fixture(scope="module", params=["flatten", "three", "sigmoid", "averaged"])
def converted(request, files):
    """The Keras network and the bytes of its integer file."""
    from mri_edge.authoring.quiet import quiet

    model = network(request.param)
    with quiet():
        calibrator = Calibrator(files, IMAGENET, record(files, "minmax", 0))
        content, facts = tflite_int8_full.convert(Conversion(device_graph(model, IMAGENET), 1, calibrator))
    assert facts["float_nodes"] == []
    assert facts["target"] == "accelerator"
    return model, content


@pytest.fixture(scope="module")
def subgraph(converted):
    model = read(converted[1])
    [found] = model.subgraphs
    return model, found


def test_every_tensor_is_an_integer_of_fixed_shape(subgraph):
    _, graph = subgraph
    for tensor in graph.tensors:
        assert tensor.type in _INTEGERS
        assert tensor.shapeSignature is None
        assert all(size > 0 for size in tensor.shape)
    for index in (*graph.inputs, *graph.outputs):
        assert graph.tensors[index].shape[0] == 1


def test_no_operator_converts_from_or_to_float(subgraph):
    model, graph = subgraph
    kinds = [_KINDS[operator_code(model, operator)] for operator in graph.operators]
    assert not {"CAST", "DEQUANTIZE", "SHAPE", "PACK"} & set(kinds)


def test_parameters_are_constant_and_dense_kernels_have_one_scale(subgraph):
    model, graph = subgraph
    dense = 0
    for operator in graph.operators:
        if operator_code(model, operator) in (BuiltinOperator.FULLY_CONNECTED, BuiltinOperator.CONV_2D):
            kernel = graph.tensors[int(operator.inputs[1])]
            assert model.buffers[kernel.buffer].data is not None
            assert not np.any(kernel.quantization.zeroPoint)
            if operator_code(model, operator) == BuiltinOperator.FULLY_CONNECTED:
                assert len(kernel.quantization.scale) == 1
                dense += 1
        if operator_code(model, operator) == BuiltinOperator.RESHAPE:
            target = model.buffers[graph.tensors[int(operator.inputs[1])].buffer].data
            assert -1 not in np.frombuffer(bytes(target), np.int32)
    assert dense >= 2


def test_probabilities_are_256ths(subgraph):
    _, graph = subgraph
    [output] = graph.outputs
    assert graph.tensors[output].quantization.scale == [1 / 256]
    assert graph.tensors[output].quantization.zeroPoint == [-128]


def test_engine_gives_the_float_probabilities_of_keras(converted, pictures, tmp_path):
    model, content = converted
    path = tmp_path / tflite_int8_full.FILE
    path.write_bytes(content)
    pixels = np.stack([np.asarray(Image.open(path)) for path, _ in pictures_in(pictures)][1:60:12])
    engine = open_engine(path)
    assert engine.input.shape == (1, 32, 32, 3)
    assert engine.outputs[0].quantization == Quantization(1 / 256, -128)
    answer = engine.run(pixels)
    one_by_one = np.concatenate([engine.run(pixels[index : index + 1]) for index in range(5)])
    empty = engine.run(pixels[:0])
    engine.close()
    expected = np.asarray(model(IMAGENET.normalize(pixels), training=False))
    if expected.shape[1] == 1:
        expected = np.concatenate([1 - expected, expected], axis=1)
    assert answer.dtype == np.float32
    assert np.abs(answer - expected).max() <= 0.02
    assert np.array_equal(answer, one_by_one)
    assert empty.shape == (0, expected.shape[1])


def test_an_operator_without_an_integer_form_is_named(files):
    import keras

    from mri_edge.authoring.quiet import quiet

    entry = keras.Input((32, 32, 3))
    hidden = keras.layers.Conv2D(4, 3)(entry)
    hidden = keras.layers.GlobalAveragePooling2D()(keras.layers.Activation(keras.ops.sin)(hidden))
    model = keras.Model(entry, keras.layers.Dense(2, activation="softmax")(hidden))
    with quiet():
        calibrator = Calibrator(files, IMAGENET, record(files, "minmax", 0))
        conversion = Conversion(device_graph(model, IMAGENET), 1, calibrator)
        with pytest.raises(ConversionError, match=r"no integer form of .*SIN"):
            tflite_int8_full.convert(conversion)


def test_a_search_does_not_try_float_layers(files, pictures):
    from mri_edge.authoring.quiet import quiet

    held_out = tuple(path for path, _ in pictures_in(pictures))[1::8]
    with quiet():
        calibrator = Calibrator(files, IMAGENET, record(files, "search", 0), held_out=held_out)
        conversion = Conversion(device_graph(network("three"), IMAGENET), 1, calibrator)
        _, facts = tflite_int8_full.convert(conversion)
    assert [tried["first_in_float"] for tried in facts["search"]["tried"]] == [False] * 3
