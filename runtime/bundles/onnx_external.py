"""Find data of an ONNX model that is stored in other files, without the package ``onnx``.

A tensor may refer to another file for its data (``external_data``). The hash of the model does not cover that file, and
a model opened from bytes would read it from the current folder. The search follows the fields of ``onnx.proto`` that
can contain a tensor and skips all others by their length, so its time is proportional to the number of nodes.
"""

from __future__ import annotations

from collections.abc import Iterator

# message -> {field number: message in that field}; see https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
_SUBMESSAGES = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
}
_TENSOR_NAME, _EXTERNAL_DATA, _DATA_LOCATION = 8, 13, 14
_OP_TYPE = 4
_COMPILED = b"EPContext"  # ONNX Runtime's node for a compiled network, which may be in another file
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_ORT_FORMAT = b"ORTM"  # the identifier of a FlatBuffers file, at byte 4


def find_external_data(content: bytes) -> str | None:
    """Name the first part of a model that is in another file, such as ``"tensor 'dense'"``; None if there is none.

    Raises
    ------
    ValueError
        The bytes are not an ONNX model.
    """
    if content[4:8] == _ORT_FORMAT:
        raise ValueError("a model in ORT format")
    pending = [("Model", 0, len(content))]
    while pending:
        message, start, end = pending.pop()
        if message == "Tensor":
            if found := _external_tensor(content, start, end):
                return found
            continue
        submessages = _SUBMESSAGES[message]
        for number, kind, low, high in _fields(content, start, end):
            if kind != _BYTES:
                continue
            if number in submessages and low < high:  # millions of empty ones would take memory
                pending.append((submessages[number], low, high))
            elif message == "Node" and number == _OP_TYPE and content[low:high] == _COMPILED:
                return "a compiled network (EPContext)"
    return None


def _external_tensor(content: bytes, start: int, end: int) -> str | None:
    name, is_external = b"", False
    for number, kind, low, high in _fields(content, start, end):
        if number == _TENSOR_NAME and kind == _BYTES:
            name = content[low:high]
        elif number == _EXTERNAL_DATA and kind == _BYTES:
            is_external = True
        elif number == _DATA_LOCATION and kind == _VARINT and content[low:high].strip(b"\x80") != b"\0":
            is_external = True  # any value but DEFAULT, which is 0
    return f"tensor {name.decode(errors='replace')!r}" if is_external else None


def _fields(content: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield the fields of the message in ``content[start:end]``: number, wire type, start and end of the value."""
    position = start
    while position < end:
        tag, position = _varint(content, position, end)
        number, kind = tag >> 3, tag & 7
        if tag >= 1 << 32 or number == 0:
            raise ValueError(f"not an ONNX file: field {number} at byte {position}")
        low = position
        if kind == _VARINT:
            _, position = _varint(content, position, end)
        elif kind == _BYTES:
            length, low = _varint(content, position, end)
            position = low + length
        elif kind in (_FIXED32, _FIXED64):
            position += 4 if kind == _FIXED32 else 8
        else:  # groups, which ONNX does not use
            raise ValueError(f"not an ONNX file: wire type {kind} at byte {position}")
        if position > end:
            raise ValueError(f"not an ONNX file: it ends within field {number}")
        yield number, kind, low, position


def _varint(content: bytes, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 70:
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError(f"not an ONNX file: invalid number at byte {position}")
