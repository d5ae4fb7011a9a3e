"""Does an ONNX file keep a part of itself in other files? Answered from its bytes, without the package ``onnx``.

A tensor of an ONNX model may name a file beside it that holds its data (``external_data``). No hash of the model
covers that file, and a model opened from bytes would take it from the current folder. The walk knows the fields of
``onnx.proto`` under which a tensor can stand and skips all others by their length, so its time grows with the nodes.
"""

from __future__ import annotations

from collections.abc import Iterator

# message -> {field number: message in that field}; of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
_INSIDE = {
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
_COMPILED = b"EPContext"  # ONNX Runtime's node for a network that a provider compiled, which may lie in a file as well
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_ORT_FORMAT = b"ORTM"  # the identifier of a FlatBuffers file, at byte 4


def outside_part(content: bytes) -> str | None:
    """What of a model lies in another file, for a message: ``"tensor 'dense'"``. None if all is inside.

    Raises
    ------
    ValueError
        The bytes are no ONNX file.
    """
    if content[4:8] == _ORT_FORMAT:
        raise ValueError("a model in ORT format")
    pending = [("Model", 0, len(content))]
    while pending:
        message, start, end = pending.pop()
        if message == "Tensor":
            if found := _outside_tensor(content, start, end):
                return found
            continue
        inside = _INSIDE[message]
        for number, kind, low, high in _fields(content, start, end):
            if kind != _BYTES:
                continue
            if number in inside:
                pending.append((inside[number], low, high))
            elif message == "Node" and number == _OP_TYPE and content[low:high] == _COMPILED:
                return "a compiled network (EPContext)"
    return None


def _outside_tensor(content: bytes, start: int, end: int) -> str | None:
    name, outside = b"", False
    for number, kind, low, high in _fields(content, start, end):
        if number == _TENSOR_NAME and kind == _BYTES:
            name = content[low:high]
        elif number == _EXTERNAL_DATA and kind == _BYTES:
            outside = True
        elif number == _DATA_LOCATION and kind == _VARINT and content[low:high].strip(b"\x80") != b"\0":
            outside = True  # whatever it is, it is not DEFAULT, which is 0
    return f"tensor {name.decode(errors='replace')!r}" if outside else None


def _fields(content: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Fields of the message in ``content[start:end]``: number, wire type, and where the value begins and ends."""
    here = start
    while here < end:
        tag, here = _varint(content, here, end)
        number, kind = tag >> 3, tag & 7
        if tag >= 1 << 32 or number == 0:
            raise ValueError(f"no ONNX file: field {number} at byte {here}")
        low = here
        if kind == _VARINT:
            _, here = _varint(content, here, end)
        elif kind == _BYTES:
            length, low = _varint(content, here, end)
            here = low + length
        elif kind in (_FIXED32, _FIXED64):
            here += 4 if kind == _FIXED32 else 8
        else:  # groups, which ONNX never had
            raise ValueError(f"no ONNX file: wire type {kind} at byte {here}")
        if here > end:
            raise ValueError(f"no ONNX file: it ends within field {number}")
        yield number, kind, low, here


def _varint(content: bytes, here: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while here < end and shift < 70:
        byte = content[here]
        here += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, here
        shift += 7
    raise ValueError(f"no ONNX file: a number ends badly at byte {here}")
