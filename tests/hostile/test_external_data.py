"""ONNX files with external data are refused, wherever in the file the reference is."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from mri_edge import Classifier
from mri_edge.authoring.packing import pack
from mri_edge.authoring.writer import new_bundle, rewrite_bundle
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import MANIFEST, Artifact, Manifest
from mri_edge.bundles.onnx_external import find_external_data
from mri_edge.engines import engine_files, open_engine
from mri_edge.errors import BundleError, EngineError
from mri_edge.storage.atomic import sha256_of

onnx = pytest.importorskip("onnx", reason="the models are made with onnx (group 'dev')")
AttributeProto, ModelProto, TensorProto = onnx.AttributeProto, onnx.ModelProto, onnx.TensorProto


def outside(name: str = "stray") -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret.bin")
    return tensor


def in_initializer(model: ModelProto) -> None:
    model.graph.initializer.append(outside())


def without_location(model: ModelProto) -> None:
    tensor = outside()
    tensor.ClearField("data_location")
    model.graph.initializer.append(tensor)


def without_file(model: ModelProto) -> None:
    tensor = outside()
    tensor.ClearField("external_data")
    model.graph.initializer.append(tensor)


def in_sparse_initializer(model: ModelProto) -> None:
    model.graph.sparse_initializer.add().values.CopyFrom(outside())


def in_sparse_indices(model: ModelProto) -> None:
    model.graph.sparse_initializer.add().indices.CopyFrom(outside())


def _attribute(model: ModelProto) -> AttributeProto:
    return model.graph.node.add(op_type="Constant").attribute.add(name="value")


def in_attribute(model: ModelProto) -> None:
    _attribute(model).t.CopyFrom(outside())


def in_attribute_list(model: ModelProto) -> None:
    _attribute(model).tensors.append(outside())


def in_sparse_attribute(model: ModelProto) -> None:
    _attribute(model).sparse_tensor.values.CopyFrom(outside())


def in_sparse_attribute_list(model: ModelProto) -> None:
    _attribute(model).sparse_tensors.add().values.CopyFrom(outside())


def in_subgraph(model: ModelProto) -> None:
    _attribute(model).g.initializer.append(outside())


def in_subgraph_list(model: ModelProto) -> None:
    _attribute(model).graphs.add().initializer.append(outside())


def deep_in_subgraphs(model: ModelProto) -> None:
    graph = _attribute(model).g
    for _ in range(20):
        graph = graph.node.add(op_type="If").attribute.add(name="then_branch").g
    graph.initializer.append(outside())


def in_function(model: ModelProto) -> None:
    model.functions.add(name="f", domain="d").node.add(op_type="Constant").attribute.add().t.CopyFrom(outside())


def in_function_attribute(model: ModelProto) -> None:
    model.functions.add(name="f", domain="d").attribute_proto.add(name="a").t.CopyFrom(outside())


def in_training(model: ModelProto) -> None:
    model.training_info.add().algorithm.initializer.append(outside())


def in_compiled_network(model: ModelProto) -> None:
    model.graph.node.add(op_type="EPContext", domain="com.microsoft", name="stray")


PLACES = (
    in_initializer,
    without_location,
    without_file,
    in_sparse_initializer,
    in_sparse_indices,
    in_attribute,
    in_attribute_list,
    in_sparse_attribute,
    in_sparse_attribute_list,
    in_subgraph,
    in_subgraph_list,
    deep_in_subgraphs,
    in_function,
    in_function_attribute,
    in_training,
    in_compiled_network,
)


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_every_engine_refuses_a_part_outside(place, tiny_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_onnx)
    place(model)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    for file in engine_files().values():
        if ".onnx" in file.SUFFIXES and not file.missing():
            with pytest.raises(EngineError, match=r"'stray' is stored in another file|compiled network"):
                open_engine(path, engine=file.NAME, provider="cpu")


def test_a_model_without_such_a_part_is_taken(tiny_onnx: Path) -> None:
    assert find_external_data(tiny_onnx.read_bytes()) is None


def test_empty_messages_take_no_memory() -> None:
    model = ModelProto()
    for _ in range(100_000):
        model.graph.node.add()  # two bytes of the file
    content = model.SerializeToString()
    tracemalloc.start()
    try:
        assert find_external_data(content) is None
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_two_halves_of_a_message_are_one(tiny_onnx: Path) -> None:
    """Protobuf merges a message that occurs twice, so a file may contain a second graph."""
    more = ModelProto()
    more.graph.initializer.append(outside())
    assert find_external_data(tiny_onnx.read_bytes() + more.SerializeToString()) == "tensor 'stray'"


@pytest.mark.parametrize(
    "content",
    [
        b"\0",
        b"\xff" * 16,
        b"\x3a\x7f",
        b"\x3b\x3c",
        b"\x80" * 12,
        b"\0\0\0\0ORTM" + bytes(64),
        b"\x3a\xff\xff\xff\xff\x0f",
    ],
)
def test_a_file_that_is_not_a_protobuf_reaches_no_engine(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(EngineError, match=r"model\.onnx: "):
        open_engine(path, provider="cpu")


# --- bundles


def with_outside_data(folder: Path) -> None:
    """Store a tensor of a bundle's artifact in another file, and update the manifest."""
    path = folder / "model.onnx"
    model = onnx.load(path)
    in_initializer(model)
    before, size = sha256_of(path), path.stat().st_size
    path.write_bytes(model.SerializeToString())
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace(before, sha256_of(path)).replace(str(size), str(path.stat().st_size)))


def test_such_a_bundle_is_neither_run_nor_copied_nor_packed(tiny_bundle: Path, tmp_path: Path) -> None:
    with_outside_data(tiny_bundle)
    bundle = Bundle.open(tiny_bundle)
    with pytest.raises(BundleError, match=r"'stray' is stored in another file.*Save the model with all of its weights"):
        Classifier.load(bundle)
    with pytest.raises(BundleError, match="another file"):
        pack(bundle, tmp_path / "packed")
    with pytest.raises(BundleError, match="another file"), rewrite_bundle(bundle, tmp_path / "slim"):
        pass
    assert not (tmp_path / "packed").exists()
    assert not (tmp_path / "slim").exists()


def test_a_bundle_with_external_data_is_not_written(
    tiny_onnx: Path, tiny_manifest: Manifest, tiny_artifact: Artifact, tmp_path: Path
) -> None:
    model = onnx.load(tiny_onnx)
    in_subgraph(model)
    with (
        pytest.raises(BundleError, match="another file"),
        new_bundle(tmp_path / "bundle", tiny_manifest) as writer,
    ):
        writer.path("model.onnx").write_bytes(model.SerializeToString())
        writer.add_artifact(tiny_artifact)
    assert not (tmp_path / "bundle").exists()
