"""Define the manifest: all that a program needs to know about a model, as frozen dataclasses and JSON.

Every bundle contains a ``manifest.json``. ``manifest.schema.json`` in this folder is the same contract as a JSON
Schema (draft 2020-12); a test checks that they agree.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from mri_edge.errors import ManifestError, printable
from mri_edge.scans.preprocessing import Preprocessing

from .decode import is_plain_relative, parse, read, to_plain

MANIFEST = "manifest.json"
SIGNATURE = f"{MANIFEST}.sig"
SCHEMA_VERSION = 1
MANIFEST_LIMIT = 16 << 20  # bytes; a typical manifest has 10 kB

Precision = Literal["float32", "float16", "int8", "dynamic"]


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of one tensor; ``None`` in a shape is the batch dimension."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Parity:
    """Difference between the answers of an artifact and of the float Keras model for the same images.

    ``verdict`` is ``met``, ``not met`` or ``undecided``; ``flips`` counts images with a changed label.
    """

    verdict: Literal["met", "not met", "undecided"]
    images: int
    max_difference: float
    mean_difference: float
    flips: int


@dataclass(frozen=True)
class Artifact:
    """One model file of the bundle.

    ``file`` is relative to the bundle. ``format`` is ``keras``, ``onnx``, ``tflite`` or another that an engine opens.
    ``input`` is uint8 (N, H, W, 3) RGB, for ``keras`` float32 and normalized. ``output`` is float32 probabilities
    (N, classes).
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
    """A file of the bundle that is not a model: metrics, a report, golden values."""

    file: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Metric:
    """A figure with its 95% interval, the number of images, and the method of the interval."""

    value: float
    low: float
    high: float
    images: int
    method: str


@dataclass(frozen=True)
class Creation:
    """How the bundle was made, in enough detail to reproduce it."""

    created: str
    command: str
    code_version: str
    code_commit: str | None
    libraries: dict[str, str]
    platform: str


@dataclass(frozen=True)
class Training:
    """How the model was trained: recipe, seed, data, split, backbone weights. Fingerprints are SHA-256."""

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
    """The images that set the ranges of an int8 artifact. Test images are never among them.

    Each artifact records its own in ``made_with``; the bundle's is that of the newest int8 artifact.
    """

    method: str
    images: int
    seed: int
    fingerprint: str


@dataclass(frozen=True)
class Novelty:
    """When a picture counts as unlike the training images; ``inference.out_of_distribution`` defines the distance.

    ``limit`` is the ``quantile`` of the distances of ``held_out_images``, in the source where it is largest. ``file``
    contains the plane that was fitted to ``fitted_images``.
    """

    file: str
    method: str
    limit: float
    quantile: float
    fitted_images: int
    held_out_images: int


@dataclass(frozen=True)
class Manifest:
    """The whole manifest.

    ``labels`` are in index order. ``positive`` is the index of the label to which sensitivity and ``threshold`` refer;
    models with more than two labels may have none, and then have no threshold either. Without a threshold the answer is
    the most probable label.
    """

    name: str
    version: str
    labels: tuple[str, ...]
    positive: int | None
    threshold: float | None
    preprocessing: Preprocessing
    artifacts: tuple[Artifact, ...]
    creation: Creation
    training: Training
    metrics: dict[str, Metric] = field(default_factory=dict)
    calibration: Calibration | None = None
    novelty: Novelty | None = None
    documents: tuple[Document, ...] = ()
    intended_use: str = ""
    limits: str = ""
    licences: dict[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @cached_property
    def title(self) -> str:
        """Name, version and the first digits of ``content_hash``. Every result contains this text."""
        return f"{printable(self.name)} {printable(self.version)} ({self.content_hash[:8]})"

    @property
    def positive_label(self) -> str | None:
        """The name of the positive label, or None."""
        return None if self.positive is None else self.labels[self.positive]

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over everything that determines an answer: artifacts, labels, threshold and preprocessing.

        It differs between trainings. Packing, unpacking, signing or renaming a bundle does not change it.
        """
        facts = [
            sorted(artifact.sha256 for artifact in self.artifacts),
            self.labels,
            self.positive,
            self.threshold,
            dataclasses.asdict(self.preprocessing),
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def to_json(self) -> str:
        """Return indented JSON text that ends with a line feed. Raises ManifestError for NaN and infinity."""
        try:
            return json.dumps(to_plain(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        except ValueError as error:
            raise ManifestError(f"{self.name}: a value in the manifest is not a finite number") from error

    @classmethod
    def from_json(cls, text: str | bytes, origin: str = "manifest.json") -> Manifest:
        """Read and check a manifest.

        Raises
        ------
        ManifestError
            Not JSON, another schema version, or a field is missing or has another type. Unknown fields are ignored
            within a schema version, and dropped when the bundle is written again. ``origin`` names the text in the
            message.
        """
        data = parse(text, origin)
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version != SCHEMA_VERSION:
            raise ManifestError(
                f"{origin}: manifest schema version must be {SCHEMA_VERSION}. Received: {version!r}",
                "A newer bundle needs a newer mri-edge; anything else is not a manifest of mri-edge",
            )
        manifest = read(cls, data, origin)
        manifest._check(origin)
        return manifest

    def artifact(self, file: str) -> Artifact | None:
        """Return the artifact with that file name, or None."""
        return next((artifact for artifact in self.artifacts if artifact.file == file), None)

    def calibrations(self) -> dict[Calibration, list[str]]:
        """Return the calibrations of the int8 artifacts, each with its files. The bundle's is the default."""
        found: dict[Calibration, list[str]] = {}
        for artifact in self.artifacts:
            own = artifact.made_with.get("calibration")
            calibration = read(Calibration, own, f"{artifact.file}: calibration") if own else self.calibration
            if artifact.precision == "int8" and calibration:
                found.setdefault(calibration, []).append(artifact.file)
        return found

    def _check(self, origin: str) -> None:
        """Check the rules that types cannot express."""
        problems = [
            (len(self.labels) < 2, f"labels: at least two are needed. Received: {list(self.labels)}"),
            (len(set(self.labels)) < len(self.labels), f"labels: repeated in {list(self.labels)}"),
            (
                self.positive is not None and not 0 <= self.positive < len(self.labels),
                f"positive: no label has index {self.positive}",
            ),
            (
                self.positive is None and self.threshold is not None,
                f"threshold: needs a positive label. Received: {self.threshold}, and positive is null",
            ),
            (
                self.threshold is not None and not 0 <= self.threshold <= 1,
                f"threshold: must be in [0, 1]. Received: {self.threshold}",
            ),
            (
                min(self.preprocessing.height, self.preprocessing.width) < 1 or 0 in self.preprocessing.deviation,
                "preprocessing: size must be positive and deviation not zero",
            ),
        ]
        files = [artifact.file for artifact in self.artifacts] + [document.file for document in self.documents]
        problems.append((len(set(files)) < len(files), "a file is listed twice"))
        problems += [(not is_plain_relative(file), f"{file!r}: files must be inside the bundle") for file in files]
        for wrong, message in problems:
            if wrong:
                raise ManifestError(f"{origin}: {message}", "Make or copy the bundle again")
