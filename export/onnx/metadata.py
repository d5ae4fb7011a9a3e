"""Write facts about a model into its ONNX file: ``metadata_props``, descriptions of the tensors, and the producer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import onnx

from mri_edge.export.sources.device_graph import INPUT, OUTPUT


def add_onnx_metadata(content: bytes, facts: Mapping[str, Any]) -> bytes:
    """The ONNX file with ``facts`` of ``metadata.file_facts`` in its ``metadata_props``.

    ONNX stores text only. A fact that is not text is stored as JSON.
    """
    model = onnx.load_from_string(content)
    name, _, version = facts["source"].partition(" ")
    model.producer_name, model.producer_version = name, version
    model.doc_string = model.graph.doc_string = _valid(facts["description"])
    size = facts["preprocessing"]
    texts = {
        INPUT: f"uint8 RGB pictures, 0 to 255, (N, {size['height']}, {size['width']}, 3)",
        OUTPUT: f"probability of each label: {', '.join(facts['labels'])}",
    }
    for tensor in (*model.graph.input, *model.graph.output):
        if tensor.name in texts:
            tensor.doc_string = _valid(texts[tensor.name])
    del model.metadata_props[:]
    for key, value in facts.items():
        model.metadata_props.add(key=key, value=_valid(value) if isinstance(value, str) else json.dumps(value))
    return bytes(model.SerializeToString())


def _valid(text: str) -> str:
    """Text as valid UTF-8: a label from the command line may contain bytes that are not, and protobuf refuses those."""
    return text.encode("utf-8", "replace").decode()
