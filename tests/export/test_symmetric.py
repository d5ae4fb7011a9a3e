"""onnx-int8-symmetric has only what TensorRT builds, as its documentation and its issue tracker state it.

TensorRT itself needs a GPU, so these tests read the graph, and compute it with ONNX Runtime and OpenVINO.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from mri_edge.engines import open_engine
from mri_edge.export.calibration.calibrator import Calibrator
from mri_edge.export.calibration.images import pictures_in, record
from mri_edge.export.formats import Conversion, onnx_fp16, onnx_int8_symmetric
from mri_edge.export.onnx.convert import constants, consumers
from mri_edge.export.sources.device_graph import INPUT, device_graph
from mri_edge.scans.preprocessing import Preprocessing

IMAGENET = Preprocessing(32, 32, mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225))
_WEIGHTED = ("Conv", "Gemm", "MatMul")


@pytest.fixture(scope="module")
def network():
    """A residual network with a depthwise convolution, as in mobile networks."""
    import keras

    keras.utils.set_random_seed(4)
    layers = keras.layers
    entry = keras.Input((32, 32, 3))
    stem = layers.Conv2D(8, 3, padding="same", activation="relu", bias_initializer="random_normal")(entry)
    branch = layers.DepthwiseConv2D(3, padding="same", bias_initializer="random_normal")(stem)
    branch = layers.Conv2D(8, 1, bias_initializer="random_normal")(layers.ReLU(6.0)(branch))
    merged = layers.MaxPooling2D()(layers.ReLU()(layers.Add()([stem, branch])))
    hidden = layers.Dense(8, activation="relu")(layers.GlobalAveragePooling2D()(merged))
    return keras.Model(entry, layers.Dense(2, activation="softmax")(hidden))


@pytest.fixture(scope="module")
def conversion(network, pictures) -> Conversion:
    from mri_edge.authoring.quiet import quiet

    files = tuple(path for path, _ in pictures_in(pictures))[::4]
    with quiet():
        return Conversion(device_graph(network, IMAGENET), 1, Calibrator(files, IMAGENET, record(files, "minmax", 0)))


@pytest.fixture(scope="module")
def content(conversion) -> bytes:
    return onnx_int8_symmetric.convert(conversion)[0]


@pytest.fixture(scope="module")
def model(content):
    return onnx.load_from_string(content)


def test_every_zero_point_is_zero_and_every_type_is_int8(model):
    values = constants(model)
    quantizing = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(quantizing) >= 8
    for node in quantizing:
        zero_point = values[node.input[2]]
        assert zero_point.dtype == np.int8
        assert not zero_point.any()
        if node.input[0] in values:  # weights
            assert values[node.input[0]].dtype == np.int8


def test_no_bias_is_quantized(model):
    values = constants(model)
    assert not [name for name, value in values.items() if value.dtype == np.int32]
    biases = [node.input[2] for node in model.graph.node if node.op_type == "Conv" and len(node.input) == 3]
    assert len(biases) == 3
    assert {values[name].dtype for name in biases} == {np.dtype(np.float32)}


def test_layers_with_weights_read_quantized_tensors_except_the_head(model):
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    weighted = [node for node in model.graph.node if node.op_type in _WEIGHTED]
    assert len(weighted) == 5
    for node in weighted[:-1]:
        assert [makers.get(name) for name in node.input[:2]] == ["DequantizeLinear", "DequantizeLinear"]
    assert "DequantizeLinear" not in [makers.get(name) for name in weighted[-1].input]


def test_no_quantization_stands_between_a_layer_and_what_tensorrt_fuses_with_it(model):
    for node in model.graph.node:
        if node.op_type in _WEIGHTED:
            for reader in consumers(model, node.output[0]):
                assert reader.op_type != "QuantizeLinear"


@pytest.mark.parametrize("target", [onnx_int8_symmetric, onnx_fp16])
def test_only_a_cast_reads_the_pixels(conversion, target):
    graph = onnx.load_from_string(target.convert(conversion)[0])
    assert graph.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert [node.op_type for node in consumers(graph, INPUT)] == ["Cast"]


def test_weights_use_eight_bits(model):
    kernels = [value for value in constants(model).values() if value.dtype == np.int8 and value.ndim > 1]
    assert {int(np.abs(kernel.astype(int)).max()) for kernel in kernels} == {127}


def test_heatmap_outputs_are_left_out(model):
    assert [output.name for output in model.graph.output] == ["probabilities"]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_give_the_answers_of_keras(engine, content, network, tmp_path):
    if engine == "openvino":
        pytest.importorskip("openvino")
    path = tmp_path / onnx_int8_symmetric.FILE
    path.write_bytes(content)
    pixels = np.random.default_rng(0).integers(0, 200, (6, 32, 32, 3), dtype=np.uint8)
    opened = open_engine(path, engine=engine, provider="cpu")
    answer = opened.run(pixels)
    opened.close()
    expected = np.asarray(network(IMAGENET.normalize(pixels), training=False))
    assert np.abs(answer - expected).max() <= 0.05


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"])
def test_onnx_runtime_gives_one_answer_at_every_optimization_level(level, content, network):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(1).integers(0, 200, (4, 32, 32, 3), dtype=np.uint8)
    [answer] = session.run(None, {INPUT: pixels})
    expected = np.asarray(network(IMAGENET.normalize(pixels), training=False))
    assert np.abs(answer - expected).max() <= 0.05
