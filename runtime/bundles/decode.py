"""Decode the untrusted records of a bundle: JSON to frozen dataclasses with every field checked, and NumPy arrays."""

from __future__ import annotations

import dataclasses
import io
import json
import types
import typing
from functools import lru_cache
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from mri_edge.errors import ManifestError

_T = TypeVar("_T")
_REMEDY = "Make or copy the bundle again"
_DEEPEST = 64  # levels of lists and objects: a function that copies or writes a record calls itself at each


def json_key(field: str) -> str:
    """Return the key of a dataclass field in JSON.

    The formats spell "artefact" in British English: another spelling would make existing bundles unreadable.
    """
    return field.replace("artifact", "artefact")


def to_plain(record: Any) -> dict[str, Any]:
    """Convert a dataclass to plain types, with the keys of JSON. ``read`` is the inverse."""
    return dataclasses.asdict(record, dict_factory=lambda items: {json_key(field): value for field, value in items})


def parse(text: str | bytes, origin: str) -> Any:
    """Parse JSON in UTF-8. Raises ManifestError, which names ``origin``, for anything else, including NaN."""
    try:
        if isinstance(text, bytes):  # ``json`` would take UTF-16 too, and bytes that are no valid text
            text = text.decode("utf-8-sig")
        value = json.loads(text, parse_constant=_refuse_constant)
        _check_depth(value)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is valid JSON but not valid text
        return value
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{origin}: not valid JSON ({error})", _REMEDY) from error


def _check_depth(value: Any) -> None:
    """Raise ValueError for lists and objects that are nested too deeply, level by level."""
    level: list[Any] = [[value]]
    for _ in range(_DEEPEST + 1):
        level = [
            item if type(item) is list else item.values()
            for container in level
            for item in container
            if type(item) in (list, dict)
        ]
        if not level:
            return
    raise ValueError(f"more than {_DEEPEST} levels")


def read(kind: type[_T], value: Any, origin: str) -> _T:
    """Convert plain objects to the dataclass ``kind``. Every required field must exist; values are not converted.

    Unknown fields are ignored, because a newer release may have added them within the schema version. JSON does not
    distinguish 1 and 1.0: either is accepted for an int or a float field.

    Fields may be dataclasses, tuples, lists, dicts with text keys, Literal, Optional, Any, or plain types.

    Raises
    ------
    ManifestError
        Names the position in ``origin``, what is expected, and what was received.
    """
    result: _T = _read(kind, value, origin)
    return result


def is_plain_relative(file: str) -> bool:
    """Whether a path stays in its folder on every system: not absolute, no ``..``, drive, backslash or control code."""
    parts = file.split("/")
    return file.isprintable() and all(part not in ("", ".", "..") for part in parts) and not set(file) & set("\\:")


def _read(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _read_dataclass(kind, value, where)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _read(next(argument for argument in arguments if argument is not type(None)), value, where)
    if origin is Literal:
        if value in arguments:
            return value
        raise _invalid(where, f"one of {list(arguments)}", value)
    if origin in (tuple, list, dict):
        return _read_container(kind, value, where)
    if kind is Any:
        return value
    if kind is float and type(value) in (int, float):
        return _finite(value, where)
    if kind is int and type(value) is float and value.is_integer():
        return int(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    raise _invalid(where, {str: "text"}.get(kind, getattr(kind, "__name__", str(kind))), value)


def _read_container(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is dict:
        if not isinstance(value, dict):
            raise _invalid(where, "an object", value)
        return {key: _read(arguments[1], item, f"{where}[{_abbreviate(key)}]") for key, item in value.items()}
    if not isinstance(value, list):
        raise _invalid(where, "a list", value)
    kinds = list(arguments) if origin is tuple and arguments[-1] is not Ellipsis else [arguments[0]] * len(value)
    if len(kinds) != len(value):
        raise _invalid(where, f"a list of {len(kinds)}", value)
    return origin(_read(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _read_dataclass(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _invalid(where, "an object", value)
    fields = {json_key(field.name): field for field in dataclasses.fields(kind)}
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in value:
            raise ManifestError(f"{where}: field {name!r} is missing", _REMEDY)
    hints = _hints(kind)
    known = {key: item for key, item in value.items() if key in fields}
    return kind(
        **{fields[key].name: _read(hints[fields[key].name], item, f"{where}: {key}") for key, item in known.items()}
    )


@lru_cache(maxsize=32)
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _finite(value: int | float, where: str) -> float:
    try:
        number = float(value)
    except OverflowError as error:  # an integer of more than 308 digits
        raise _invalid(where, "float", value) from error
    if number in (float("inf"), float("-inf")):  # 1e999 is valid JSON
        raise _invalid(where, "a finite number", value)
    return number


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _invalid(where: str, expected: str, received: Any) -> ManifestError:
    return ManifestError(f"{where}: must be {expected}. Received: {_abbreviate(received)}", _REMEDY)


def _abbreviate(value: Any) -> str:
    text = "a huge integer" if isinstance(value, int) and abs(value) >= 1 << 1024 else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_array(content: bytes, origin: str) -> NDArray[Any]:
    """Read the array in a ``.npy`` file. Raises ManifestError, which names ``origin``, for anything else."""
    try:
        return parse_array(content)
    except Exception as error:  # NumPy parses a header as Python, so SyntaxError and many others
        raise ManifestError(
            f"{origin}: not a NumPy array ({str(error).strip() or type(error).__name__})", _REMEDY
        ) from error


def parse_array(content: bytes) -> NDArray[Any]:
    """Read the array in a ``.npy`` file. Raises ValueError, or what NumPy raises, for anything else.

    Unlike ``numpy.load`` it refuses pickles and archives, and compares the shape with the length of the content.
    """
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if reader is None:
        raise ValueError(f"unsupported version {version}")
    shape, column_major, dtype = reader(file)
    if dtype.hasobject or dtype.itemsize == 0:
        raise ValueError(f"unsupported dtype {dtype}")
    count = 1
    for size in shape:
        count *= size
    if min(shape, default=0) < 0 or count * dtype.itemsize != len(content) - file.tell():
        raise ValueError(f"{dtype} {shape} does not fit its {len(content)} bytes")
    values = np.frombuffer(content, dtype, count, file.tell())
    return values.reshape(shape, order="F" if column_major else "C")
