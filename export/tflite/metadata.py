"""Write facts about a model into its TFLite file: a signature, TFLite Metadata, and associated files.

TFLite Metadata is a FlatBuffer in the model's buffer ``TFLITE_METADATA``; the files that it names are appended to the
model as a ZIP archive. No maintained package writes it, so the few tables that are needed are built here. The numbers
of fields and enumerations are those of ``metadata_schema.fbs`` in the repository tensorflow/tflite-support.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from mri_edge.errors import printable
from mri_edge.export.sources.device_graph import INPUT, OUTPUT

from .convert import read, write

SIGNATURE = "serving_default"
LABELS = "labels.txt"  # one label a line, in the order of the outputs
FACTS = "metadata.json"  # what TFLite Metadata has no field for

_BUFFER = b"TFLITE_METADATA"
_IDENTIFIER = b"M001"
_PARSER_VERSION = "1.0.0"  # the first version of the schema has every field that is used here
# Enumerations of the schema.
_DESCRIPTIONS, _TENSOR_AXIS_LABELS = np.int8(1), np.int8(2)  # AssociatedFileType
_FEATURE, _IMAGE = np.uint8(1), np.uint8(2)  # ContentProperties
_NORMALIZATION = np.uint8(1)  # ProcessUnitOptions
_RGB = np.int8(1)  # ColorSpaceType
_NO_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a ZIP archive can state


@dataclass(frozen=True)
class _Table:
    """A table of the schema: its values by the number of their field."""

    fields: Mapping[int, Any]


def add_tflite_metadata(content: bytes, facts: Mapping[str, Any]) -> bytes:
    """The TFLite file with a signature, and with ``facts`` of ``metadata.file_facts`` as TFLite Metadata.

    ``LABELS`` and ``FACTS`` are appended as an archive, which ``zipfile`` opens.
    """
    model = read(content)
    [subgraph] = model.subgraphs
    model.description = None  # "MLIR Converted."; TFLite Metadata has a better one
    model.signatureDefs = [_signature(subgraph)]
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(_pack(_model_metadata(facts)), np.uint8)
    entry = schema.MetadataT()
    entry.name, entry.buffer = _BUFFER, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(other for other in model.metadata or () if other.name != _BUFFER), entry]
    labels = "".join(f"{printable(label)}\n" for label in facts["labels"])
    return _append(write(model), {LABELS: labels, FACTS: json.dumps(facts, indent=1) + "\n"})


def _signature(subgraph: Any) -> Any:
    """The signature that takes ``pixels`` and gives ``probabilities``."""
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = SIGNATURE.encode(), 0
    signature.inputs = [_tensor_map(INPUT, subgraph.inputs[0])]
    signature.outputs = [_tensor_map(OUTPUT, subgraph.outputs[0])]
    return signature


def _tensor_map(name: str, index: int) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name.encode(), int(index)
    return entry


def _model_metadata(facts: Mapping[str, Any]) -> _Table:
    """The table ``ModelMetadata``."""
    size = facts["preprocessing"]
    what = "RGB pictures" if size["framing"] == "picture" else "The square around the head of RGB pictures"
    how = "with" if size["antialias"] else "without"
    image_size = _Table({0: np.uint32(size["width"]), 1: np.uint32(size["height"])})
    content = _Table({0: _IMAGE, 1: _Table({0: _RGB, 1: image_size})})
    # The graph normalizes the pixels, so that they are used as they are.
    normalization = _Table({0: _NORMALIZATION, 1: _Table({0: [0.0], 1: [1.0]})})
    pixels = _Table(
        {
            0: INPUT,
            1: f"{what}, 0 to 255, resized bilinearly {how} antialiasing. The file normalizes them itself.",
            3: content,
            4: [normalization],
            5: _Table({0: [255.0], 1: [0.0]}),
        }
    )
    labels = _Table({0: LABELS, 1: "Labels in the order of the outputs.", 2: _TENSOR_AXIS_LABELS})
    probabilities = _Table(
        {
            0: OUTPUT,
            1: f"Probability of each label: {', '.join(facts['labels'])}. {facts['decision']}",
            3: _Table({0: _FEATURE, 1: _Table({})}),
            5: _Table({0: [1.0], 1: [0.0]}),
            6: [labels],
        }
    )
    others = _Table({0: FACTS, 1: "Labels, threshold, preprocessing and more.", 2: _DESCRIPTIONS})
    fields = {
        0: facts["name"],
        1: facts["description"],
        2: facts["version"],
        3: [_Table({2: [pixels], 3: [probabilities]})],
        4: facts["source"],
        5: facts.get("license", ""),
        6: [others],
        7: _PARSER_VERSION,
    }
    return _Table({number: value for number, value in fields.items() if value != ""})


def _pack(table: _Table) -> bytes:
    """The bytes of a FlatBuffer with this root."""
    builder = flatbuffers.Builder()
    builder.Finish(_build(builder, table), _IDENTIFIER)
    return bytes(builder.Output())


def _build(builder: Any, value: _Table | str | Sequence[Any]) -> int:
    """Write a table, a text, or a vector of tables or float32, and return its offset. Parts come before the whole."""
    if isinstance(value, str):
        return int(builder.CreateString(value.encode("utf-8", "replace")))
    if not isinstance(value, _Table):
        if isinstance(value[0], float):
            return int(builder.CreateNumpyVector(np.asarray(value, np.float32)))
        offsets = [_build(builder, part) for part in value]
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return int(builder.EndVector())
    scalars = {number: scalar for number, scalar in value.fields.items() if isinstance(scalar, np.generic)}
    parts = {number: _build(builder, part) for number, part in value.fields.items() if number not in scalars}
    builder.StartObject(max(value.fields, default=-1) + 1)
    for number, offset in parts.items():
        builder.PrependUOffsetTRelativeSlot(number, offset, 0)
    prepend = {"int8": builder.PrependInt8Slot, "uint8": builder.PrependUint8Slot, "uint32": builder.PrependUint32Slot}
    for number, scalar in scalars.items():
        prepend[scalar.dtype.name](number, int(scalar), 0)
    return int(builder.EndObject())


def _append(content: bytes, files: Mapping[str, str]) -> bytes:
    """The bytes with an archive after them. It is not compressed, because readers on devices map the files."""
    buffer = io.BytesIO(content)
    with zipfile.ZipFile(buffer, "a") as archive:
        for name, text in files.items():
            entry = zipfile.ZipInfo(name, _NO_DATE)
            entry.create_system = 3  # otherwise it is that of the machine
            archive.writestr(entry, text.encode("utf-8", "replace"))
    return buffer.getvalue()
