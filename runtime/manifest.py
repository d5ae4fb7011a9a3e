"""The manifest: everything a program must know of a model, as frozen dataclasses and JSON.

``manifest.json`` stands in every bundle. ``manifest.schema.json`` beside this file is the
same contract as JSON Schema (draft 2020-12); a test holds the two together.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from .errors import ManifestError
from .preprocess import Preprocessing

SCHEMA_VERSION = 1

Precision = Literal["float32", "float16", "int8", "dynamic"]


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of one tensor; ``None`` in a shape is the batch dimension."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Parity:
    """How far an artefact is from the float Keras model on the same images.

    ``verdict`` is ``met``, ``not met`` or ``undecided``; ``flips`` counts images whose label changed.
    """

    verdict: Literal["met", "not met", "undecided"]
    images: int
    max_difference: float
    mean_difference: float
    flips: int


@dataclass(frozen=True)
class Artefact:
    """One model file of the bundle.

    ``file`` is relative to the bundle, ``format`` is ``keras``, ``onnx``, ``tflite`` or what else an
    engine opens, ``input`` uint8 (N, H, W, 3) RGB for every format but
    ``keras`` (float32, normalised), ``output`` float32 probabilities (N, classes).
    """

    file: str
    format: str
    precision: Precision
    size_bytes: int
    sha256: str
    input: TensorSpec
    output: TensorSpec
    parity: Parity | None = None
    made_with: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Document:
    """A file of the bundle that is not a model: metrics, reports, golden values."""

    file: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Metric:
    """A figure with its 95% interval, the number of images behind it, and how the interval was made."""

    value: float
    low: float
    high: float
    images: int
    method: str


@dataclass(frozen=True)
class Creation:
    """How the bundle came to be: enough to make it again."""

    created: str
    command: str
    code_version: str
    code_commit: str | None
    libraries: dict[str, str]
    platform: str


@dataclass(frozen=True)
class Training:
    """Facts of the training: recipe, seed, data, split, backbone weights. Fingerprints are SHA-256."""

    recipe: str
    seed: int
    backbone: str
    backbone_weights: str
    backbone_sha256: str
    data_fingerprint: str
    split: str
    split_fingerprint: str
    train_images: int
    test_images: int
    classes: dict[str, list[str]]
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Calibration:
    """Which images set the ranges of the quantised artefacts: training images only."""

    method: str
    images: int
    seed: int
    fingerprint: str


@dataclass(frozen=True)
class Manifest:
    """The whole manifest.

    ``labels`` are in index order. ``positive`` is the index of the label that sensitivity and
    ``threshold`` are about; without a threshold the likeliest label is the answer.
    """

    name: str
    version: str
    labels: tuple[str, ...]
    positive: int
    threshold: float | None
    preprocessing: Preprocessing
    artefacts: tuple[Artefact, ...]
    creation: Creation
    training: Training
    metrics: dict[str, Metric] = field(default_factory=dict)
    calibration: Calibration | None = None
    documents: tuple[Document, ...] = ()
    intended_use: str = ""
    limits: str = ""
    licences: dict[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """Indented JSON text that ends with a line feed."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, origin: str = "manifest.json") -> Manifest:
        """Read and check a manifest.

        Raises
        ------
        ManifestError
            Not JSON, another schema version, or a field that is missing, unknown or of another type.
            ``origin`` is the name that the message gives to the text.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"{origin}: not valid JSON ({error})", "Make or copy the bundle again") from error
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version != SCHEMA_VERSION:
            raise ManifestError(
                f"{origin}: manifest schema version must be {SCHEMA_VERSION}. Received: {version!r}",
                "A newer bundle needs a newer mri-edge; anything else is no manifest of ours",
            )
        manifest: Manifest = _read(cls, data, origin)
        manifest._check(origin)
        return manifest

    def artefact(self, file: str) -> Artefact | None:
        """The artefact with that file name, or None."""
        return next((one for one in self.artefacts if one.file == file), None)

    def _check(self, origin: str) -> None:
        """What types alone do not say."""
        problems = [
            (len(self.labels) < 2, f"labels: at least two are needed. Received: {list(self.labels)}"),
            (len(set(self.labels)) < len(self.labels), f"labels: repeated in {list(self.labels)}"),
            (not 0 <= self.positive < len(self.labels), f"positive: no label has index {self.positive}"),
            (
                self.threshold is not None and not 0 <= self.threshold <= 1,
                f"threshold: must be in [0, 1]. Received: {self.threshold}",
            ),
            (
                min(self.preprocessing.height, self.preprocessing.width) < 1 or 0 in self.preprocessing.deviation,
                "preprocessing: size must be positive and deviation not zero",
            ),
        ]
        files = [one.file for one in self.artefacts] + [one.file for one in self.documents]
        problems.append((len(set(files)) < len(files), "a file is listed twice"))
        problems += [(not _is_plain_relative(file), f"{file!r}: files must lie inside the bundle") for file in files]
        for wrong, message in problems:
            if wrong:
                raise ManifestError(f"{origin}: {message}", "Make or copy the bundle again")


def _is_plain_relative(file: str) -> bool:
    """True for ``a/b.onnx``; False for absolute paths, drive letters, ``..`` and back-slashes."""
    parts = file.split("/")
    return all(part not in ("", ".", "..") for part in parts) and not any(c in file for c in "\\:\0")


@lru_cache(maxsize=32)
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _read(kind: Any, value: Any, where: str) -> Any:
    """Turn parsed JSON into ``kind``, strictly: no unknown field, no silent conversion but int to float."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _read_dataclass(kind, value, where)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _read(next(one for one in arguments if one is not type(None)), value, where)
    if origin is Literal:
        if value in arguments:
            return value
        raise _unfit(where, f"one of {list(arguments)}", value)
    if origin is tuple and isinstance(value, list):
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) != len(value):
            raise _unfit(where, f"a list of {len(kinds)}", value)
        return tuple(_read(one, item, f"{where}[{i}]") for i, (one, item) in enumerate(zip(kinds, value, strict=True)))
    if origin is list and isinstance(value, list):
        return [_read(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: _read(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is Any:
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    raise _unfit(where, getattr(origin or kind, "__name__", str(kind)), value)


def _read_dataclass(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _unfit(where, "an object", value)
    fields = {one.name: one for one in dataclasses.fields(kind)}
    if unknown := sorted(set(value) - set(fields)):
        raise ManifestError(f"{where}: unknown field {unknown[0]!r}", "It may come from a newer mri-edge")
    for name, one in fields.items():
        required = one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
        if required and name not in value:
            raise ManifestError(f"{where}: field {name!r} is missing", "Make or copy the bundle again")
    hints = _hints(kind)
    return kind(**{name: _read(hints[name], item, f"{where}: {name}") for name, item in value.items()})


def _unfit(where: str, wanted: str, received: Any) -> ManifestError:
    shown = repr(received)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return ManifestError(f"{where}: must be {wanted}. Received: {shown}", "Make or copy the bundle again")
