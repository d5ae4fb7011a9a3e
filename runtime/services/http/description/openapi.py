"""Describe every route as OpenAPI 3.1. The schemas of results are those of ``predict --json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mri_edge
from mri_edge.inference import prediction
from mri_edge.inference.prediction import NOTICE
from mri_edge.services.http.inference_protocol.codec import MAX_IMAGES, OUTPUTS
from mri_edge.services.http.limits import LEAST_TIMEOUT_S

_SCHEMAS = Path(prediction.__file__).parent
_REASONS = {
    "400": "The request is wrong.",
    "401": "The token is missing or wrong.",
    "403": "A page of another site sent the request.",
    "404": "There is no such model.",
    "405": "The path has another method.",
    "408": "The body did not arrive in time.",
    "413": "The body, the picture or the volume is too large, or has too many parts.",
    "415": "The format is not supported, or the body is compressed.",
    "421": "The Host header does not name this machine.",
    "422": "The scan cannot be read.",
    "429": "Too many requests are in progress. Retry-After says when to try again.",
    "500": "The model or the server failed.",
    "503": "The model is not ready, or memory or the disk is used up.",
    "504": "The deadline passed. What had not run yet never will.",
}
_EVERYWHERE = ("401", "403", "421", "500")
_BUSY = ("400", "408", "413", "415", "422", "429", "503", "504")
_FAILED = ("413", "415", "422")  # also if each of several scans failed: then the answer has their results
_JSON, _OCTETS = "application/json", "application/octet-stream"


def document(models: dict[str, str]) -> dict[str, Any]:
    """Return the description of a server. ``models`` are the names of its models and their versions."""
    return {
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {
            "title": "mri-edge",
            "version": mri_edge.__version__,
            "summary": "Classify brain MRI scans",
            "description": f"{NOTICE} Errors are objects with the key `error`; `/metrics` counts their reasons.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "."}],
        "tags": [
            {"name": "scans", "description": "Whole scans"},
            {"name": "inference", "description": "Open Inference Protocol v2, as KServe and Triton speak it"},
            {"name": "operation", "description": "Metrics and this description"},
        ],
        # A server without a token accepts every request.
        "security": [{"token": []}, {}],
        "paths": {
            "/v1/classify": {"post": _classify(list(models))},
            **_protocol_paths(models),
            "/metrics": {"get": _get("operation", "Metrics in the format of Prometheus", "text/plain", _text())},
            "/openapi.json": {"get": _get("operation", "This description", _JSON, {"type": "object"}, is_open=True)},
            "/docs": {"get": _get("operation", "This description as a page", "text/html", _text(), is_open=True)},
            "/": {"get": _get("operation", "The page for people", "text/html", _text(), is_open=True)},
        },
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": _schemas(),
            "responses": {f"error{code}": _error(text) for code, text in _REASONS.items()},
        },
    }


def _text() -> dict[str, Any]:
    return {"type": "string"}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _described(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {_JSON: {"schema": schema}}}


def _error(description: str) -> dict[str, Any]:
    return _described(description, _ref("error"))


def _errors(*codes: str) -> dict[str, Any]:
    return {code: {"$ref": f"#/components/responses/error{code}"} for code in sorted({*codes, *_EVERYWHERE})}


def _get(
    tag: str, summary: str, media: str, schema: dict[str, Any], *errors: str, is_open: bool = False, **more: Any
) -> dict[str, Any]:
    responses = {"200": {"description": summary, "content": {media: {"schema": schema}}}, **_errors(*errors)}
    return {"tags": [tag], "summary": summary, "responses": responses, **({"security": []} if is_open else {}), **more}


def _query(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _classify(models: list[str]) -> dict[str, Any]:
    flag = {"type": "string", "enum": ["0", "1"], "default": "0"}
    file = {"type": "string", "contentMediaType": _OCTETS}
    form = {"type": "object", "required": ["scan"], "properties": {"scan": {"type": "array", "items": file}}}
    results = {
        "type": "object",
        "required": ["results", "skipped", "notice"],
        "properties": {
            "results": {"type": "array", "items": _ref("result_or_series")},
            "skipped": {"type": "array", "items": _text(), "description": "Files that are no scans."},
            "notice": _text(),
        },
    }
    answer = {"anyOf": [_ref("result_or_series"), results]}
    return {
        "operationId": "classify",
        "tags": ["scans"],
        "summary": "Classify a scan, several scans, or a series",
        "description": "The body is a picture, DICOM or NIfTI file, or a zip file of them; or a form with files. "
        "One result is the object that `mri-edge predict --json` prints; several results, or one beside files that are "
        "no scans, are in `results`.",
        "parameters": [
            _query("model", "Default: the first model.", {"type": "string", "enum": models}),
            _query("by", "What gets an answer.", {"type": "string", "enum": ["slice", "series", "study"]}),
            _query(
                "plane",
                "Which series are classified, by series or study.",
                {"type": "string", "enum": ["axial", "any"]},
            ),
            _query("picture", "1 adds `picture`, the section that the network gets: a PNG in base64.", flag),
            _query("heatmap", "1 adds `picture` and `explanation`. For one frame; takes about 140 runs.", flag),
            _query("index", "Classify only this frame, counted from 0.", {"type": "integer", "minimum": 0}),
            _query("timeout", "Seconds until the answer is due.", {"type": "number", "minimum": LEAST_TIMEOUT_S}),
        ],
        "requestBody": {
            "required": True,
            "content": {_OCTETS: {}, "multipart/form-data": {"schema": form}},
        },
        "responses": {
            "200": _described("The results.", answer),
            **_errors("404", *_BUSY),
            **{code: _described(_REASONS[code], {"anyOf": [_ref("error"), results]}) for code in _FAILED},
        },
    }


def _protocol_paths(models: dict[str, str]) -> dict[str, Any]:
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "enum": list(models)}}
    versions = sorted(set(models.values()))
    version = {"name": "version", "in": "path", "required": True, "schema": {"type": "string", "enum": versions}}
    live = {"type": "object", "required": ["live"], "properties": {"live": {"type": "boolean"}}}
    ready = {"type": "object", "required": ["ready"], "properties": {"ready": {"type": "boolean"}}}
    server = {
        "type": "object",
        "required": ["name", "version", "extensions"],
        "properties": {"name": _text(), "version": _text(), "extensions": {"type": "array", "items": _text()}},
    }
    not_ready = {"503": {"description": "Not ready.", "content": {_JSON: {"schema": ready}}}}

    def health(summary: str, schema: dict[str, Any], *errors: str, is_open: bool = False) -> dict[str, Any]:
        route = _get("inference", summary, _JSON, schema, *errors, is_open=is_open)
        route["responses"].update(not_ready if schema is ready else {})
        return route

    paths: dict[str, Any] = {
        "/v2": {"get": _get("inference", "Name, version and extensions of the server", _JSON, server)},
        "/v2/health/live": {"get": health("Whether the server answers", live, is_open=True)},
        "/v2/health/ready": {"get": health("Whether all models are ready", ready, is_open=True)},
    }
    for path, parameters in (
        ("/v2/models/{model}", [name]),
        ("/v2/models/{model}/versions/{version}", [name, version]),
    ):
        metadata = _get("inference", "Inputs and outputs of a model", _JSON, _ref("model"), "404", "503")
        paths[path] = {"parameters": parameters, "get": metadata}
        paths[f"{path}/ready"] = {
            "parameters": parameters,
            "get": health("Whether a model is ready", ready, "404"),
        }
        paths[f"{path}/infer"] = {"parameters": parameters, "post": _infer()}
    return paths


def _infer() -> dict[str, Any]:
    length = {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "description": "Bytes of the JSON, if binary data follow it.",
        "schema": {"type": "integer", "minimum": 1},
    }
    return {
        "tags": ["inference"],
        "summary": "Run a model on tensors of its size, or on files",
        "description": "The data of tensors may follow the JSON in binary (`binary_tensor_data`). The warnings about "
        "scans are only in the answers of `/v1/classify`.",
        "parameters": [length],
        "requestBody": {
            "required": True,
            "content": {_JSON: {"schema": _ref("infer_request")}, _OCTETS: {}},
        },
        "responses": {
            "200": {
                "description": "The outputs.",
                "content": {_JSON: {"schema": _ref("infer_response")}, _OCTETS: {}},
            },
            **_errors("404", *_BUSY),
        },
    }


def _schemas() -> dict[str, Any]:
    shape = {"type": "array", "items": {"type": "integer"}}
    tensor = {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {"name": _text(), "datatype": _text(), "shape": shape},
    }
    binary_size = {"type": "object", "properties": {"binary_data_size": {"type": "integer", "minimum": 0}}}
    image = {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {
            "name": {"const": "image"},
            "datatype": {"enum": ["UINT8", "BYTES"]},
            "shape": {
                "type": "array",
                "items": {"type": "integer", "minimum": 1},
                "description": f"[N, height, width, 3] for UINT8, [N] for BYTES; N is at most {MAX_IMAGES}.",
            },
            "data": {
                "type": "array",
                "description": "Numbers from 0 to 255, nested or flat; for BYTES, files in base64.",
            },
            "parameters": binary_size,
        },
    }
    wanted = {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"enum": list(OUTPUTS)},
            "parameters": {"type": "object", "properties": {"binary_data": {"type": "boolean"}}},
        },
    }
    infer_request = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string", "description": "Returned as it is."},
            "parameters": {
                "type": "object",
                "properties": {
                    "binary_data_output": {"type": "boolean"},
                    "timeout": {"type": "integer", "minimum": 0, "description": "Microseconds; 0 is none."},
                },
            },
            "inputs": {"type": "array", "minItems": 1, "maxItems": 1, "items": image},
            "outputs": {"type": "array", "items": wanted},
        },
    }
    infer_response = {
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {
            "model_name": _text(),
            "model_version": _text(),
            "id": _text(),
            "outputs": {
                "type": "array",
                "items": {
                    **tensor,
                    "properties": {**tensor["properties"], "data": {"type": "array"}, "parameters": binary_size},  # type: ignore[dict-item]
                },
            },
        },
    }
    model = {
        "type": "object",
        "required": ["name", "versions", "platform", "inputs", "outputs"],
        "properties": {
            "name": _text(),
            "versions": {"type": "array", "items": _text()},
            "platform": _text(),
            "inputs": {"type": "array", "items": tensor},
            "outputs": {"type": "array", "items": tensor},
        },
    }
    error = {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {"type": "string", "description": "The problem, in one line."},
            "hint": {"type": "string", "description": "What to do about it."},
            "code": {"type": "string", "description": "Of a scan that cannot be read, as in a result."},
        },
    }
    return {
        "error": error,
        "infer_request": infer_request,
        "infer_response": infer_response,
        "model": model,
        "result": _file_schema("result"),
        "series": _file_schema("series"),
        "result_or_series": {"anyOf": [_ref("result"), _ref("series")]},
    }


def _file_schema(name: str) -> Any:
    """Return a schema of results; its references become those of the component ``name``."""
    text = (_SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8")
    schema = json.loads(text.replace('"#/$defs/', f'"#/components/schemas/{name}/$defs/'))
    del schema["$schema"]
    return schema
