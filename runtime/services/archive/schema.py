"""Derive the columns of the results from the JSON Schemas of the results, and make tables of results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from mri_edge.inference import prediction, series

INPUT = "input"
OUTCOME = "outcome"
ANSWERED, FAILED = "answered", "failed"
# Only 'watch', or only runs that identify patients, write these keys.
_NOT_WRITTEN = {"sha256", "moved_to", "time", "identifiers", "window_option"}
_TYPES = {"string": pa.string(), "number": pa.float64(), "integer": pa.int64(), "boolean": pa.bool_()}

Json = Mapping[str, Any]


@cache
def columns(by: str) -> pa.Schema:
    """Return the columns of the results: the keys of the result, after the number of the input and the outcome.

    Parameters
    ----------
    by
        "slice": a row is an object of ``result.schema.json``. "series": one of ``series.schema.json``, or a failure.
    """
    slices = _document(prediction.__file__, "result.schema.json")
    failure = _properties(slices, "failure")
    answer = _properties(slices, "prediction") | failure
    if by == "series":
        document = _document(series.__file__, "series.schema.json")
        every_slice = {"position_mm": pa.float64()} | {
            key: kind for key, kind in answer.items() if key not in series.COMMON
        }
        kept = {key: _type(part, document) for key, part in document["properties"].items()}
        answer = kept | _properties(document, "series") | {"slices": pa.list_(pa.struct(every_slice))} | failure
    return pa.schema([(INPUT, pa.int64()), (OUTCOME, pa.string()), *answer.items()])


_TOGETHER = 4096  # rows that are converted together: as objects of Python they take ten times the memory


def table(rows: Iterable[tuple[int, Json]], schema: pa.Schema) -> pa.Table:
    """Return a table with one row for each pair of an input's number and the JSON object of a result."""
    remaining, parts = iter(rows), [schema.empty_table()]
    while part := list(islice(remaining, _TOGETHER)):
        parts.append(_part(part, schema))
    return pa.concat_tables(parts)


def _part(rows: list[tuple[int, Json]], schema: pa.Schema) -> pa.Table:
    numbers, records = zip(*rows, strict=True)
    outcomes = [FAILED if "error" in record else ANSWERED for record in records]
    columns = [_array([record.get(field.name) for record in records], field.type) for field in list(schema)[2:]]
    return pa.table([numbers, outcomes, *columns], schema=schema)


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Return the values of a column. Arrow converts all of them together: in Python, it takes longer than a network."""
    try:
        return pa.array(values, kind)
    except UnicodeEncodeError:  # file names need not be valid text
        return pa.array(_escaped(values), kind)


def _escaped(value: Any) -> Any:
    """Return a value in which text that is no valid Unicode has escapes."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {key: _escaped(item) for key, item in value.items()}
    return [_escaped(item) for item in value] if isinstance(value, list) else value


def _document(module: str, name: str) -> Json:
    document: Json = json.loads(Path(module).with_name(name).read_text(encoding="utf-8"))
    return document


def _properties(document: Json, name: str) -> dict[str, pa.DataType]:
    properties = document["$defs"][name]["properties"]
    return {key: _type(part, document) for key, part in properties.items() if key not in _NOT_WRITTEN}


def _type(part: Json, document: Json) -> pa.DataType:
    """Return the Arrow type of a part of a JSON Schema."""
    if "$ref" in part:
        return _type(document["$defs"][part["$ref"].removeprefix("#/$defs/")], document)
    values = part.get("enum", [part["const"]] if "const" in part else [])
    if values:
        return pa.int64() if isinstance(values[0], int) else pa.string()
    names = [part["type"]] if isinstance(part["type"], str) else part["type"]
    (name,) = (name for name in names if name != "null")
    if name == "array":
        return pa.list_(_type(part["items"], document))
    if name == "object":
        properties: Json = part.get("properties") or dict.fromkeys(
            part.get("required", ()), part.get("additionalProperties")
        )
        if not properties:
            return pa.map_(pa.string(), _type(part["additionalProperties"], document))
        return pa.struct([(key, _type(value, document)) for key, value in properties.items()])
    return _TYPES[name]
