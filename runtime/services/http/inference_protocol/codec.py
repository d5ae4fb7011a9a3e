"""Read and write the bodies of Open Inference Protocol v2: JSON, and the extension for binary tensor data.

Specifications: github.com/kserve/open-inference-protocol, inference_rest.md, and Triton's extension_binary_data.md. A
binary body is the JSON, ``Inference-Header-Content-Length`` bytes long, and behind it the data of the tensors in order.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_edge.scans.frame import Pixels
from mri_edge.services.http.errors import RequestRefused

INPUT, PROBABILITIES, LABEL = "image", "probabilities", "label"
OUTPUTS = (PROBABILITIES, LABEL)
MAX_IMAGES = 256  # of one request; more would delay others too long
MAX_JSON = 32 << 20  # bytes; in memory the parsed values take about eight times as many
_KNOWN_JSON = 1 << 10  # bytes; shorter JSON is remembered
_LONGEST_TIMEOUT = 10**15  # microseconds; a number of JSON may be larger than the largest float
_LENGTH_BYTES = 4  # of the length before each element of a BYTES tensor


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request to infer.

    Attributes
    ----------
    id
        What the client calls the request, or None.
    images
        A tensor, uint8 (N, H, W, 3), a view of the body if it is binary; or N files: pictures or DICOM.
    outputs
        The names of the outputs to return, and whether each is to be binary.
    timeout_s
        How long the client waits, or None if it does not say.
    """

    id: str | None
    images: Pixels | list[bytes]
    outputs: tuple[tuple[str, bool], ...]
    timeout_s: float | None


def _bad(message: str) -> RequestRefused:
    return RequestRefused(400, "bad_request", message)


def read_request(body: bytes, json_length: int | None, height: int, width: int) -> InferRequest:
    """Read the body of a request to infer, for a network with inputs of this size.

    ``json_length`` is the value of ``Inference-Header-Content-Length``, or None for a body that is all JSON. Raises
    RequestRefused with status 400 or 413.
    """
    length = len(body) if json_length is None else json_length
    if not body:
        raise _bad("the body is empty. Send a JSON object")
    if not 0 < length <= len(body):
        raise _bad(f"Inference-Header-Content-Length must be from 1 to the size of the body. Received: {length}")
    if length > MAX_JSON:
        raise RequestRefused(413, "body_too_large", f"the JSON is larger than {MAX_JSON:,} bytes. Send binary tensors")
    read = _read_known_header if length <= _KNOWN_JSON else _read_header
    header = read(body if length == len(body) else body[:length], len(body) - length, height, width)
    if header.is_binary:
        images = _binary_images(header, memoryview(body)[length:])
    else:
        images = _json_images(header)
    return InferRequest(header.id, images, header.outputs, header.timeout_s)


@dataclass(frozen=True, slots=True)
class _Header:
    """The JSON of a request. ``data`` are the values of the input, if they are not binary."""

    id: str | None
    outputs: tuple[tuple[str, bool], ...]
    timeout_s: float | None
    datatype: str
    shape: tuple[int, ...]
    is_binary: bool
    data: Any


def _read_header(text: bytes, binary_size: int, height: int, width: int) -> _Header:
    """Read the JSON of a request that ``binary_size`` bytes follow."""
    try:
        request = json.loads(text)
    except (ValueError, RecursionError):
        raise _bad("the body is not valid JSON") from None
    if not isinstance(request, dict):
        raise _bad("the body must be a JSON object")
    request_id = request.get("id")
    if not isinstance(request_id, str | None):
        raise _bad("id must be a string")
    parameters = _parameters(request)
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise _bad(f"inputs must have one element, the tensor {INPUT}")
    tensor = inputs[0]
    datatype, shape, is_binary = _input(tensor, binary_size, height, width)
    outputs, timeout_s = _outputs(request, parameters), _timeout(parameters)
    return _Header(request_id, outputs, timeout_s, datatype, shape, is_binary, tensor.get("data"))


# Clients send the same JSON before each binary tensor, and reading it takes as long as running a small network.
_read_known_header = lru_cache(maxsize=64)(_read_header)


def _parameters(owner: dict[str, Any]) -> dict[str, Any]:
    parameters = owner.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise _bad("parameters must be an object")
    return parameters


def _timeout(parameters: dict[str, Any]) -> float | None:
    """Return the timeout in seconds. Triton defines the parameter in microseconds, and 0 as none."""
    timeout = parameters.get("timeout", 0)
    if not isinstance(timeout, int) or isinstance(timeout, bool) or timeout < 0:
        raise _bad("the parameter timeout must be a whole number of microseconds")
    return min(timeout, _LONGEST_TIMEOUT) / 1e6 if timeout else None


def _outputs(request: dict[str, Any], parameters: dict[str, Any]) -> tuple[tuple[str, bool], ...]:
    default = parameters.get("binary_data_output") is True
    wanted = request.get("outputs")
    if not wanted:
        return tuple((name, default) for name in OUTPUTS)
    if not isinstance(wanted, list) or not all(isinstance(output, dict) for output in wanted):
        raise _bad("outputs must be a list of objects")
    for output in wanted:
        if output.get("name") not in OUTPUTS:
            raise _bad(f"the outputs are {' and '.join(OUTPUTS)}. Another one was requested")
    if len(wanted) > len(OUTPUTS):  # each would be a copy in the answer
        raise _bad("an output was requested more than once")
    return tuple((output["name"], _parameters(output).get("binary_data", default) is True) for output in wanted)


def _input(tensor: dict[str, Any], binary_size: int, height: int, width: int) -> tuple[str, tuple[int, ...], bool]:
    """Return the datatype and the shape of the input, and whether its data are binary."""
    if tensor.get("name") != INPUT:
        raise _bad(f"the name of the input must be {INPUT}")
    shape, datatype = tensor.get("shape"), tensor.get("datatype")
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise _bad("shape must be a list of whole numbers")
    size = _parameters(tensor).get("binary_data_size")
    if size is None and binary_size:
        raise _bad("bytes follow the JSON, but the input has no parameter binary_data_size")
    if size is not None and (type(size) is not int or size != binary_size):
        raise _bad(f"binary_data_size must be the {binary_size} bytes that follow the JSON")
    if datatype == "UINT8":
        if len(shape) != 4 or shape[1:] != [height, width, 3]:
            raise _bad(f"the shape of a UINT8 tensor must be [N, {height}, {width}, 3]")
    elif datatype == "BYTES":
        if len(shape) != 1:
            raise _bad("the shape of a BYTES tensor must be [N]")
    else:
        raise _bad("datatype must be UINT8, for tensors, or BYTES, for files")
    if not 0 < shape[0] <= MAX_IMAGES:
        raise _bad(f"a request must have from 1 to {MAX_IMAGES} images. Received: {shape[0]}")
    return datatype, tuple(shape), size is not None


def _binary_images(header: _Header, binary: memoryview) -> Pixels | list[bytes]:
    if header.datatype == "UINT8":
        return _shaped(np.frombuffer(binary, np.uint8), header)
    return _counted(_elements(binary), header)


def _json_images(header: _Header) -> Pixels | list[bytes]:
    if header.datatype == "UINT8":
        return _shaped(_uint8(header.data, header.shape), header)
    return _counted(_decoded(header.data), header)


def _shaped(values: Pixels, header: _Header) -> Pixels:
    if values.size != math.prod(header.shape):
        raise _bad(f"the data must have as many values as the shape. Received: {values.size}")
    return values.reshape(header.shape)


def _counted(files: list[bytes], header: _Header) -> list[bytes]:
    if len(files) != header.shape[0]:
        raise _bad(f"the data must have {header.shape[0]} elements. Received: {len(files)}")
    return files


def _uint8(data: Any, shape: tuple[int, ...]) -> Pixels:
    """Return numbers from JSON, nested or flat.

    NumPy gets only whole numbers: it would give every element of a list the size of the longest string in it.
    """
    for _ in shape:
        if not isinstance(data, list) or {*map(type, data)} != {list}:
            break
        lengths = {*map(len, data)}
        if len(lengths) > 1:
            break
        if len(data) * max(lengths) > math.prod(shape):
            raise _bad("the data must have as many values as the shape")
        data = [*chain.from_iterable(data)]
    if isinstance(data, list) and {*map(type, data)} <= {int}:
        with suppress(ValueError):  # a number is not from 0 to 255
            return np.frombuffer(bytes(data), np.uint8)
    raise _bad("the data of a UINT8 tensor must be whole numbers from 0 to 255")


def _decoded(data: Any) -> list[bytes]:
    """Return files from JSON, where they are base64."""
    if not isinstance(data, list) or not all(isinstance(text, str) for text in data):
        raise _bad("the data of a BYTES tensor must be a flat list of strings")
    try:
        return [base64.b64decode(text, validate=True) for text in data]
    except (binascii.Error, ValueError):
        raise _bad("in JSON, files must be base64. Or send them in binary") from None


def _elements(binary: memoryview) -> list[bytes]:
    """Return the elements of a binary BYTES tensor, each with its length in 4 bytes, little-endian, before it."""
    elements, position = [], 0
    while position < len(binary):
        start = position + _LENGTH_BYTES
        position = start + int.from_bytes(binary[position:start], "little")
        if start > len(binary) or position > len(binary):
            raise _bad("an element of the BYTES tensor is longer than the body")
        elements.append(bytes(binary[start:position]))
        if len(elements) > MAX_IMAGES:
            break  # the count is refused
    return elements


def write_response(
    request: InferRequest, name: str, version: str, probabilities: NDArray[np.float32], labels: Sequence[str]
) -> tuple[bytes, int | None]:
    """Return the body of an answer, and the length of its JSON if binary data follow it, otherwise None.

    Parameters
    ----------
    name, version
        Of the model.
    probabilities
        float32 (N, classes).
    labels
        The label of each image.
    """
    shapes = {PROBABILITIES: ("FP32", list(probabilities.shape)), LABEL: ("BYTES", [len(labels)])}
    outputs: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for output, is_binary in request.outputs:
        datatype, shape = shapes[output]
        fields: dict[str, Any] = {"name": output, "datatype": datatype, "shape": shape}
        if is_binary:
            data = probabilities.astype("<f4").tobytes() if output == PROBABILITIES else b"".join(map(_element, labels))
            fields["parameters"] = {"binary_data_size": len(data)}
            binary.append(data)
        else:
            fields["data"] = probabilities.ravel().tolist() if output == PROBABILITIES else list(labels)
        outputs.append(fields)
    response: dict[str, Any] = {"model_name": name, "model_version": version, "outputs": outputs}
    if request.id is not None:
        response["id"] = request.id
    text = json.dumps(response).encode()
    return (b"".join([text, *binary]), len(text)) if binary else (text, None)


def _element(label: str) -> bytes:
    content = label.encode()
    return len(content).to_bytes(_LENGTH_BYTES, "little") + content
