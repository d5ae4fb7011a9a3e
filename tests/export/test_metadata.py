"""What a model file says about itself: ONNX metadata, the TFLite signature, TFLite Metadata and its files."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import sys
import time
import zipfile

import flatbuffers
import numpy as np
import onnx
import pytest
from ai_edge_litert.interpreter import Interpreter
from flatbuffers.table import Table

from mri_edge import __version__
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import Manifest
from mri_edge.engines import open_engine
from mri_edge.export.metadata import add_metadata, file_facts
from mri_edge.scans.preprocessing import Preprocessing

SMALL = Bundle.open("small")
FORMATS = {"onnx": "model.int8.onnx", "tflite": "model.int8.tflite"}


def described(file_format: str, manifest: Manifest = SMALL.manifest) -> bytes:
    """An embedded int8 file with the facts of a manifest in it."""
    return add_metadata(SMALL.read(SMALL.artifact(FORMATS[file_format])), file_format, manifest)


def read_onnx(content: bytes) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load_from_string(content).metadata_props}


def read_archive(content: bytes, name: str) -> str:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read(name).decode()


def test_facts_are_those_of_the_manifest():
    manifest = dataclasses.replace(
        SMALL.manifest,
        threshold=0.4,
        preprocessing=Preprocessing(224, 192, channel_order="BGR", scale=1.0, mean=(103.9, 116.8, 123.7)),
    )
    facts = file_facts(manifest)
    assert (facts["name"], facts["version"], facts["source"]) == ("small", manifest.version, f"mri-edge {__version__}")
    assert facts["labels"] == ["no tumour", "tumour"]
    assert (facts["positive_label"], facts["threshold"]) == ("tumour", 0.4)
    assert "'tumour' if its probability is at least 0.4" in facts["decision"]
    assert "recalibrated" in facts["decision"]  # the file does not know a later threshold
    assert facts["notice"] == "Research use only: not a medical device."
    assert "code: MIT" in facts["license"]
    assert (facts["preprocessing"]["height"], facts["preprocessing"]["width"]) == (224, 192)
    assert facts["preprocessing"]["channel_order"] == "RGB"  # the graph reverses it
    assert facts["normalization_in_graph"] == {
        "channel_order": "BGR",
        "scale": 1.0,
        "mean": [103.9, 116.8, 123.7],
        "std": [1.0, 1.0, 1.0],
    }


def test_a_model_without_a_positive_label_states_no_threshold():
    facts = file_facts(dataclasses.replace(SMALL.manifest, positive=None, threshold=None, intended_use="", licences={}))
    assert {"positive_label", "threshold", "license"}.isdisjoint(facts)
    assert facts["decision"].startswith("The answer is the most probable label.")
    assert facts["description"] == facts["notice"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, b"RGB pictures, 0 to 255, resized bilinearly without antialiasing."),
        (
            {"framing": "head", "resize": "antialiased"},
            b"The square around the head of RGB pictures, 0 to 255, resized bilinearly with antialiasing.",
        ),
    ],
)
def test_tflite_says_how_pictures_are_resized(changes, text):
    preprocessing = dataclasses.replace(SMALL.manifest.preprocessing, **changes)
    assert text in described("tflite", dataclasses.replace(SMALL.manifest, preprocessing=preprocessing))


def test_onnx_runtime_reads_every_fact():
    import onnxruntime

    facts = file_facts(SMALL.manifest)
    session = onnxruntime.InferenceSession(described("onnx"), providers=["CPUExecutionProvider"])
    meta = session.get_modelmeta()
    texts = meta.custom_metadata_map
    assert texts.keys() == facts.keys()
    read = {key: text if isinstance(facts[key], str) else json.loads(text) for key, text in texts.items()}
    assert read == facts
    assert meta.producer_name == "mri-edge"
    assert meta.description == SMALL.manifest.intended_use


def test_onnx_tensors_are_described():
    model = onnx.load_from_string(described("onnx"))
    assert (model.producer_name, model.producer_version) == ("mri-edge", __version__)
    assert "(N, 128, 128, 3)" in model.graph.input[0].doc_string
    assert "no tumour, tumour" in model.graph.output[0].doc_string
    onnx.checker.check_model(model, full_check=True)


def test_foreign_onnx_metadata_is_replaced():
    model = onnx.load_from_string(described("onnx"))
    model.metadata_props.add(key="author", value="a name")
    content = add_metadata(model.SerializeToString(), "onnx", SMALL.manifest)
    assert content == described("onnx")


def test_tflite_signature_names_input_and_output():
    interpreter = Interpreter(model_content=described("tflite"))
    assert interpreter.get_signature_list() == {"serving_default": {"inputs": ["pixels"], "outputs": ["probabilities"]}}
    run = interpreter.get_signature_runner("serving_default")
    for batch in (1, 3):
        pixels = np.random.default_rng(batch).integers(0, 256, (batch, 128, 128, 3), dtype=np.uint8)
        engine = open_engine(SMALL.path_of(SMALL.artifact("model.int8.tflite")), provider="cpu")
        assert np.array_equal(run(pixels=pixels)["probabilities"], engine.run(pixels))
        engine.close()


def test_files_in_the_tflite_archive():
    content = described("tflite")
    assert read_archive(content, "labels.txt") == "no tumour\ntumour\n"
    assert json.loads(read_archive(content, "metadata.json")) == file_facts(SMALL.manifest)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}


class Reader:
    """Read a FlatBuffer by the numbers of its fields, without the schema's generated code."""

    def __init__(self, content: bytes, position: int | None = None) -> None:
        start = int.from_bytes(content[:4], "little") if position is None else position
        self.table = Table(bytearray(content), start)

    def _offset(self, number: int) -> int:
        return self.table.Offset(4 + 2 * number)

    def text(self, number: int) -> str:
        return self.table.String(self._offset(number) + self.table.Pos).decode()

    def part(self, number: int) -> Reader:
        return Reader(self.table.Bytes, self.table.Indirect(self._offset(number) + self.table.Pos))

    def item(self, number: int) -> Reader:
        """The only item of a vector of tables."""
        offset = self._offset(number)
        assert self.table.VectorLen(offset) == 1
        return Reader(self.table.Bytes, self.table.Indirect(self.table.Vector(offset)))

    def floats(self, number: int) -> list[float]:
        flags, offset = flatbuffers.number_types.Float32Flags, self._offset(number)
        return self.table.GetVectorAsNumpy(flags, offset).tolist()

    def number(self, number: int, kind: str) -> int:
        flags = getattr(flatbuffers.number_types, f"{kind}Flags")
        return self.table.Get(flags, self._offset(number) + self.table.Pos)


def test_tflite_metadata_follows_the_schema():
    """The numbers are those of metadata_schema.fbs; nothing here is shared with the writer."""
    from mri_edge.export.tflite.convert import read

    model = read(described("tflite"))
    [entry] = [entry for entry in model.metadata if entry.name == b"TFLITE_METADATA"]
    content = bytes(model.buffers[entry.buffer].data)
    assert content[4:8] == b"M001"
    metadata = Reader(content)
    facts = file_facts(SMALL.manifest)
    assert [metadata.text(number) for number in (0, 1, 2, 4, 5, 7)] == [
        "small",
        facts["description"],
        facts["version"],
        facts["source"],
        facts["license"],
        "1.0.0",
    ]
    assert metadata.item(6).text(0) == "metadata.json"
    pixels, probabilities = metadata.item(3).item(2), metadata.item(3).item(3)
    assert (pixels.text(0), probabilities.text(0)) == ("pixels", "probabilities")
    content_of_pixels = pixels.part(3)
    assert content_of_pixels.number(0, "Uint8") == 2  # ImageProperties
    image = content_of_pixels.part(1)
    assert image.number(0, "Int8") == 1  # RGB
    assert [image.part(1).number(number, "Uint32") for number in (0, 1)] == [128, 128]
    normalization = pixels.item(4)
    assert normalization.number(0, "Uint8") == 1  # NormalizationOptions
    assert [normalization.part(1).floats(number) for number in (0, 1)] == [[0.0], [1.0]]
    assert [pixels.part(5).floats(number) for number in (0, 1)] == [[255.0], [0.0]]
    labels = probabilities.item(6)
    assert (labels.text(0), labels.number(2, "Int8")) == ("labels.txt", 2)  # TENSOR_AXIS_LABELS
    assert facts["decision"] in probabilities.text(1)


def test_the_official_reader_accepts_the_metadata(tmp_path):
    official = pytest.importorskip(
        "tensorflow_lite_support.metadata.python.metadata", reason="needs the package tflite-support"
    )
    displayer = official.MetadataDisplayer.with_model_buffer(described("tflite"))
    assert sorted(displayer.get_packed_associated_file_list()) == ["labels.txt", "metadata.json"]
    metadata = json.loads(displayer.get_metadata_json())
    [subgraph] = metadata["subgraph_metadata"]
    assert subgraph["input_tensor_metadata"][0]["content"]["content_properties"]["color_space"] == "RGB"
    assert subgraph["output_tensor_metadata"][0]["associated_files"][0]["type"] == "TENSOR_AXIS_LABELS"
    # The official writer checks the metadata against the model, and finds the lowest version that has every field.
    populator = official.MetadataPopulator.with_model_buffer(SMALL.read(SMALL.artifact("model.int8.tflite")))
    populator.load_metadata_buffer(bytes(displayer.get_metadata_buffer()))
    for name in ("labels.txt", "metadata.json"):
        (tmp_path / name).write_text(read_archive(described("tflite"), name))
    populator.load_associated_files([str(tmp_path / "labels.txt"), str(tmp_path / "metadata.json")])
    populator.populate()
    written = official.MetadataDisplayer.with_model_buffer(populator.get_model_buffer())
    assert json.loads(written.get_metadata_json())["min_parser_version"] == metadata["min_parser_version"]


@pytest.mark.parametrize("file_format", FORMATS)
def test_metadata_changes_no_answer(file_format, tmp_path):
    file = tmp_path / FORMATS[file_format]
    file.write_bytes(described(file_format))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3), dtype=np.uint8)
    answers = []
    for path in (file, SMALL.path_of(SMALL.artifact(file.name))):
        engine = open_engine(path, provider="cpu")
        answers.append(engine.run(pixels))
        engine.close()
    assert np.array_equal(*answers)


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the time zone cannot be changed")
@pytest.mark.parametrize("file_format", FORMATS)
def test_bytes_do_not_depend_on_time_or_machine(file_format, monkeypatch):
    first = described(file_format)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    monkeypatch.setattr(time, "time", lambda: 2e9)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "getcwd", lambda: "/elsewhere")
    try:
        assert described(file_format) == first
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("file_format", FORMATS)
def test_labels_that_are_not_plain_text_are_kept(file_format):
    labels = ("ohne Tumor – 脳", "a\nb", "c\udc80")  # a command line gives bytes that are no UTF-8 as surrogates
    manifest = dataclasses.replace(SMALL.manifest, labels=labels, positive=2, name="d\udc80")
    content = described(file_format, manifest)
    if file_format == "onnx":
        assert tuple(json.loads(read_onnx(content)["labels"])) == labels
        assert read_onnx(content)["positive_label"] == "c?"
    else:
        assert tuple(json.loads(read_archive(content, "metadata.json"))["labels"]) == labels
        assert read_archive(content, "labels.txt").splitlines() == ["ohne Tumor – 脳", "a\\nb", "c\\udc80"]
    assert described(file_format, manifest) == content


def test_a_file_of_another_format_is_not_changed():
    assert add_metadata(b"anything", "keras", SMALL.manifest) == b"anything"


def test_every_exported_file_describes_itself(exported):
    facts = file_facts(exported.manifest)
    described_files = 0
    for artifact in exported.manifest.artifacts:
        content = exported.read(artifact)
        if artifact.format == "onnx":
            assert json.loads(read_onnx(content)["labels"]) == facts["labels"], artifact.file
            described_files += 1
        elif artifact.format == "tflite":
            assert json.loads(read_archive(content, "metadata.json")) == facts, artifact.file
            assert Interpreter(model_content=content).get_signature_list().keys() == {"serving_default"}
            described_files += 1
    assert described_files >= 2 * len(FORMATS)


def test_a_repeated_export_gives_the_same_files(exported, bundle, pictures):
    from mri_edge.authoring.quiet import quiet
    from mri_edge.export.exporter import Settings, export

    with quiet():
        results = export(Bundle.open(bundle), Settings(formats=("onnx", "tflite"), data=pictures))
    for result in results:
        assert result.artifact.sha256 == exported.artifact(result.artifact.file).sha256, result.artifact.file
