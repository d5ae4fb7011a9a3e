"""Write ``runtime/bundles/manifest.schema.json``, the JSON Schema (draft 2020-12) of the manifest's dataclasses.

    python scripts/make_schema.py

Run it after every change of ``runtime/bundles/manifest.py``; a test compares the result.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any, Literal

from mri_edge.bundles.decode import json_key
from mri_edge.bundles.manifest import (
    FRAMED_VERSION,
    MAX_OFFSET,
    RECALIBRATED_VERSION,
    SCHEMA_VERSION,
    TEMPERATURES,
    Manifest,
)

SCHEMA = Path(__file__).resolve().parents[1] / "runtime" / "bundles" / "manifest.schema.json"

_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean"}
# Rules about two fields: two labels need a positive one, so does a threshold, later parts a later schema version.
_RULES = [
    {
        "if": {"properties": {"labels": {"maxItems": 2}}},
        "then": {"properties": {"positive": {"type": "integer"}}},
    },
    {
        "if": {"properties": {"positive": {"type": "null"}}},
        "then": {"properties": {"threshold": {"type": "null"}}},
    },
    {
        "if": {"properties": {"recalibration": {"type": "object"}}, "required": ["recalibration"]},
        "then": {"properties": {"schema_version": {"minimum": RECALIBRATED_VERSION}}},
    },
    {
        "if": {
            "properties": {
                "preprocessing": {"properties": {"framing": {"const": "head"}}, "required": ["framing"]},
            },
        },
        "then": {"properties": {"schema_version": {"const": FRAMED_VERSION}}},
    },
]
# No empty part, "." or "..", and no backslash, colon or control character.
_PLAIN_RELATIVE = {"pattern": r"^(?!.*(^|/)\.{0,2}(/|$))[^\\:\x00-\x1f\x7f]+$"}
# What the manifest checks beyond types. Two checks concern several fields at once, which a schema cannot express:
# `positive` is an index into `labels`, and no file is listed twice.
_BOUNDS: dict[str, dict[str, Any]] = {
    "Manifest.schema_version": {"enum": [SCHEMA_VERSION, RECALIBRATED_VERSION, FRAMED_VERSION]},
    "Manifest.labels": {"minItems": 2, "uniqueItems": True},
    "Manifest.positive": {"minimum": 0},
    "Manifest.threshold": {"minimum": 0, "maximum": 1},
    "Preprocessing.height": {"minimum": 1},
    "Preprocessing.width": {"minimum": 1},
    "Preprocessing.deviation": {"not": {"contains": {"const": 0}}},
    "Recalibration.temperature": {"minimum": TEMPERATURES[0], "maximum": TEMPERATURES[1]},
    "Recalibration.log_odds_offset": {"minimum": -MAX_OFFSET, "maximum": MAX_OFFSET},
    "Recalibration.prevalence": {"minimum": 0, "maximum": 1},
    "Recalibration.original_threshold": {"minimum": 0, "maximum": 1},
    "SeriesRule.window_mm": {"minimum": 0},
    "SeriesRule.least_slices": {"minimum": 1},
    "SeriesRule.threshold": {"minimum": 0, "maximum": 1},
    "Artifact.file": _PLAIN_RELATIVE,
    "Document.file": _PLAIN_RELATIVE,
}


def schema() -> dict[str, Any]:
    """Return the schema; dataclasses become ``$defs``."""
    definitions: dict[str, Any] = {}
    root = _object(Manifest, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "mri-edge bundle manifest",
        **root,
        "allOf": _RULES,
        "$defs": dict(sorted(definitions.items())),
    }


def _object(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)
    properties = {}
    for field in fields:
        bounds = _BOUNDS.get(f"{kind.__name__}.{field.name}", {})
        properties[json_key(field.name)] = {**_rule(hints[field.name], definitions), **bounds}
    return {
        "description": (kind.__doc__ or "").strip().partition("\n")[0],
        "type": "object",
        "properties": properties,
        "required": [json_key(field.name) for field in fields if _is_required(field) or field.name == "schema_version"],
    }


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _rule(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if kind.__name__ not in definitions:
            definitions[kind.__name__] = _object(kind, definitions)
        return {"$ref": f"#/$defs/{kind.__name__}"}
    if origin in (types.UnionType, typing.Union):
        (rule,) = (_rule(argument, definitions) for argument in arguments if argument is not type(None))
        return {"type": [rule["type"], "null"]} if set(rule) == {"type"} else {"anyOf": [rule, {"type": "null"}]}
    if origin is Literal:
        return {"type": "string", "enum": list(arguments)}
    if origin is list or (origin is tuple and arguments[-1] is Ellipsis):
        return {"type": "array", "items": _rule(arguments[0], definitions)}
    if origin is tuple:
        rules = [_rule(argument, definitions) for argument in arguments]
        return {"type": "array", "prefixItems": rules, "items": False, "minItems": len(rules)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _rule(arguments[1], definitions)}
    return {} if kind is Any else {"type": _PLAIN[kind]}


def text() -> str:
    """Return the content of the file."""
    return json.dumps(schema(), indent=2) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(text(), encoding="utf-8")
    print(SCHEMA)
