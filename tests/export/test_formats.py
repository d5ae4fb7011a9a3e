"""Every format: export the tiny model, run it in its engine at several batch sizes, and compare it with Keras."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import mri_edge.bundles.manifest
from mri_edge import Classifier
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import Quantization
from mri_edge.engines import engine_for, open_engine
from mri_edge.errors import UsageError
from mri_edge.export.formats import find_format, format_names, installed_formats

# Largest |Δp|. float32: the order of summation. float16: 11 bits of mantissa through four layers. Integers: five times
# the gate's limit of the mean.
LARGEST = {"float32": 1e-5, "float16": 2e-3, "dynamic": 0.1, "int8": 0.1}


@pytest.fixture(scope="module")
def reference(model, exported, split, pictures):
    from mri_edge.export.calibration.images import read_batches

    preprocessing = exported.manifest.preprocessing
    pixels = np.concatenate(list(read_batches([path for path, _ in split.locate(pictures, "test")], preprocessing)))
    return pixels, np.asarray(model(preprocessing.normalize(pixels), training=False))


@pytest.mark.parametrize("name", installed_formats())
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_artifact_agrees_with_keras_at_any_batch_size(name, batch, exported, reference):
    target = find_format(name)
    pixels, expected = reference
    engine = open_engine(exported.path_of(exported.artifact(target.FILE)), provider="cpu")
    output = engine.outputs[0]
    assert engine.input.dtype == "uint8"
    # Only files for accelerators give integers, and the manifest says which values they stand for.
    assert (output.dtype, output.quantization) == (
        ("int8", Quantization(1 / 256, -128)) if name == "tflite-int8-full" else ("float32", None)
    )
    assert exported.artifact(target.FILE).output == output
    received = np.concatenate([engine.run(pixels[start : start + batch]) for start in range(0, len(pixels), batch)])
    engine.close()
    assert received.dtype == np.float32
    assert np.abs(received - expected).max() <= LARGEST[target.PRECISION]
    # float16 rounds to 11 bits. The largest int8 probability is 255/256.
    assert np.abs(received.sum(axis=1) - 1).max() < (1e-3 if output.quantization is None else 1 / 128)


@pytest.mark.parametrize("name", installed_formats())
def test_classifier_runs_every_artifact(name, exported, pictures):
    target = find_format(name)
    classifier = Classifier.load(exported.folder, artifact=target.FILE, provider="cpu")
    try:
        prediction = classifier.predict(pictures / "yes" / "59.png")
    finally:
        classifier.close()
    assert prediction.artifact == target.FILE
    assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1 / 128)


def test_manifest_is_valid_and_lists_every_artifact(exported):
    schema = json.loads(Path(mri_edge.bundles.manifest.__file__).with_name("manifest.schema.json").read_text())
    jsonschema.validate(json.loads((exported.folder / "manifest.json").read_text()), schema)
    exported.verify()
    files = {artifact.file for artifact in exported.manifest.artifacts}
    assert files == {"model.keras", *(find_format(name).FILE for name in installed_formats())}
    for artifact in exported.manifest.artifacts:
        if artifact.format != "keras":
            assert artifact.parity is not None, artifact.file
            assert artifact.parity.images == 60
        if artifact.format == "onnx":
            assert artifact.made_with["opset"] == 17


def test_parity_report_records_the_hash_of_each_stage(exported, split, reference):
    pixels, _ = reference
    images = json.loads((exported.folder / "parity.json").read_text())["images"]
    for image, recorded, tensor in zip(images, split.of("test"), pixels, strict=True):
        assert image["sha256"] == {"file": recorded.sha256, "tensor": hashlib.sha256(tensor.tobytes()).hexdigest()}


def test_parity_page_shows_every_image_of_the_report(exported):
    parity = json.loads((exported.folder / "parity.json").read_text())
    html = (exported.folder / "report" / "parity.html").read_text()
    assert len(parity["images"]) == 60
    for file, comparison in parity["artefacts"].items():
        assert len(comparison["probabilities"]) == 60
        assert comparison["p99_difference"] <= comparison["max_difference"]
        assert file in html
    assert html.count("<svg") == len(parity["artefacts"])
    assert html.count("<circle") == 60 * len(parity["artefacts"])
    assert "http" not in html  # the page loads nothing from the network


def test_float_onnx_has_no_redundant_nodes(exported):
    import onnx

    model = onnx.load(exported.folder / "model.onnx")
    kinds = [node.op_type for node in model.graph.node if not node.name.startswith("explanation/")]
    assert kinds.count("Transpose") == 1
    assert kinds[0] == "Transpose"
    assert not {"Shape", "Gather", "MatMul", "Identity", "Dropout"} & set(kinds)
    assert [opset.version for opset in model.opset_import if opset.domain == ""] == [17]


def test_int8_onnx_reads_pixels_as_integers(exported):
    import onnx

    model = onnx.load(exported.folder / "model.int8.onnx")
    kinds = [node.op_type for node in model.graph.node if not node.name.startswith("explanation/")]
    assert not {"Cast", "Sub", "Relu"} & set(kinds)
    [pad] = [node for node in model.graph.node if node.op_type == "Pad"]
    [constant] = [tensor for tensor in model.graph.initializer if tensor.name == pad.input[2]]
    assert list(constant.dims) == []  # ONNX asks for a scalar, and tract refuses anything else
    reader = next(node for node in model.graph.node if pad.output[0] in node.input)
    assert reader.op_type == "DequantizeLinear"


def test_int8_tflite_computes_in_integers_up_to_the_head(exported):
    from mri_edge.export.tflite.convert import BuiltinOperator, read

    model = read((exported.folder / "model.int8.tflite").read_bytes())
    [subgraph] = model.subgraphs
    names = {value: name for name, value in vars(BuiltinOperator).items() if isinstance(value, int)}
    kinds = [names[model.operatorCodes[operator.opcodeIndex].builtinCode] for operator in subgraph.operators]
    assert kinds[0] == "QUANTIZE"
    assert kinds[-3:] == ["DEQUANTIZE", "FULLY_CONNECTED", "SOFTMAX"]
    assert "CAST" not in kinds
    assert "SHAPE" not in kinds
    assert kinds.count("QUANTIZE") == kinds.count("DEQUANTIZE") == 1


def test_quantized_files_are_smaller(exported):
    sizes = {artifact.file: artifact.size_bytes for artifact in exported.manifest.artifacts}
    # The graph itself takes much of a file with 20,000 weights. The limit for VGG16, in test_quickstart, is 26%.
    assert sizes["model.int8.onnx"] < 0.5 * sizes["model.onnx"]
    assert sizes["model.int8.tflite"] < 0.5 * sizes["model.tflite"]
    assert sizes["model.fp16.onnx"] < 0.65 * sizes["model.onnx"]


@pytest.mark.parametrize("file", ["model.int8.onnx", "model.int8-symmetric.onnx"])
def test_int8_onnx_names_its_nodes_and_numbers_its_tensors(exported, file):
    import onnx

    graph = onnx.load(exported.folder / file).graph
    outer = {value.name for value in (*graph.input, *graph.output)}
    tensors = {name for node in graph.node for name in (*node.input, *node.output) if name}
    assert outer < tensors
    assert all(name.isdecimal() for name in tensors - outer)
    nodes = [node.name for node in graph.node]
    assert len(set(nodes)) == len(nodes)
    assert any("conv" in name.lower() for name in nodes)


def test_numbers_of_tf2onnx_do_not_reach_a_file():
    """They vary from process to process, and so does the layer after which a shared constant is named."""
    from onnx import TensorProto, helper

    from mri_edge.export.onnx.convert import _number_by_order, finalize

    def made(first: int, second: int, shared: str) -> bytes:
        nodes = [
            helper.make_node("Add", ["pixels", shared], [f"Conv__{first}:0"], name=f"Conv__{first}"),
            helper.make_node("Add", [f"Conv__{first}:0", shared], [f"Conv__{second}:0"], name=f"Conv__{second}"),
            helper.make_node("Mul", [f"Conv__{second}:0", f"fold__{first + 7}"], ["probabilities"], name="last"),
        ]
        constants = [helper.make_tensor(name, TensorProto.FLOAT, [1], [2]) for name in (shared, f"fold__{first + 7}")]
        values = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1]) for name in ("pixels", "probabilities")
        ]
        opset = [helper.make_opsetid("", 17)]
        graph = helper.make_graph(nodes, "graph", values[:1], values[1:], constants)
        model = helper.make_model(graph, opset_imports=opset, ir_version=8)
        _number_by_order(model)
        return finalize(model).SerializeToString()

    assert made(20, 31, "b/Relu6_max__9") == made(41, 12, "a/Relu6_max__10")


def test_file_of_each_format_has_the_suffix_of_its_engine():
    for name in installed_formats():
        target = find_format(name)
        assert f".{target.FORMAT}" in target.FILE
        assert engine_for(target.FILE)


def test_a_format_with_missing_packages_is_refused_and_left_out_of_all(monkeypatch):
    from mri_edge.export import formats

    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="format 'ncnn' needs packages that are not installed: ncnn, pnnx") as caught:
        formats.check_format("ncnn")
    assert caught.value.hint == "pip install 'mri-edge[ncnn]'; pip install --no-deps pnnx"
    assert set(formats.format_names()) - set(installed_formats()) == {"ncnn", "openvino", "openvino-int8"}


def test_a_new_file_is_a_new_format(bundle, pictures, tmp_path, monkeypatch):
    """A module that is added to the folder is listed, and its artifact is made, compared and written."""
    from mri_edge.export import formats
    from mri_edge.export.exporter import Settings, export

    (tmp_path / "toy_onnx.py").write_text(
        "FILE, FORMAT, PRECISION, CALIBRATED = 'toy.onnx', 'onnx', 'float32', False\n"
        "LIBRARIES = ('numpy',)\n"
        "def convert(conversion):\n"
        "    return conversion.float_onnx.SerializeToString(), {'toy': True}\n"
    )
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path)])
    assert "toy-onnx" in format_names()
    [result] = export(Bundle.open(bundle), Settings(("toy-onnx",), pictures))
    assert result.comparison.verdict == "met"
    assert Bundle.open(bundle).artifact("toy.onnx").made_with == {"numpy": np.__version__, "toy": True}
