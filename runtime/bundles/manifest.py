"""Define the manifest: all that a program needs to know about a model, as frozen dataclasses and JSON.

Every bundle contains a ``manifest.json``. ``manifest.schema.json`` in this folder is the same contract as a JSON
Schema (draft 2020-12); a test checks that they agree.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import field
from functools import cached_property
from typing import Any, Literal

from mri_edge.errors import ManifestError, printable
from mri_edge.records import dataclass
from mri_edge.scans.preprocessing import Preprocessing

from .decode import is_plain_relative, json_key, parse, read, to_plain

MANIFEST = "manifest.json"
SIGNATURE = f"{MANIFEST}.sig"
# Version 2 is a manifest with a recalibration. An older release would ignore the field and give other answers than the
# bundle's figures describe, so it has to refuse such a bundle. Every other manifest is version 1.
SCHEMA_VERSION = 1
RECALIBRATED_VERSION = 2
FRAMED_VERSION = 3
_VERSIONS = (SCHEMA_VERSION, RECALIBRATED_VERSION, FRAMED_VERSION)
# Beyond these limits a recalibration says nothing, and 64-bit numbers could overflow when it is applied.
TEMPERATURES = (0.01, 100.0)
MAX_OFFSET = 50.0
MANIFEST_LIMIT = 16 << 20  # bytes; a typical manifest has 10 kB

Precision = Literal["float32", "float16", "int8", "dynamic"]


@dataclass(frozen=True)
class Quantization:
    """The values of an integer tensor: ``scale * (integer - zero_point)``."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of one tensor; ``None`` in a shape is the batch dimension.

    Only integers that stand for other values have a ``quantization``.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    quantization: Quantization | None = None


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
    (N, classes), or int8 with a ``quantization`` in files for accelerators that compute integers only; a batch size
    of 1 is that of the file.
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
class Recalibration:
    """How the answers of the artifacts are changed for scans like those of one site, and what to expect there.

    ``inference.prediction.recalibrated`` applies it; threshold and metrics of the manifest are described by it as well.

    Attributes
    ----------
    temperature
        Divides the logarithms of the artifact's probabilities, in [0.01, 100].
    log_odds_offset
        Is then added for the positive label: the log odds of ``prevalence``, 0 for one half. In [-50, 50].
    prevalence
        Proportion of positives for which the probabilities are calibrated; None if each label has the same weight.
    original_threshold
        The manifest's threshold before. ``metrics`` of the manifest and the parity of its artifacts belong to it.
    threshold_rule
        How the new threshold was chosen.
    created
        Date and time.
    artifact, engine, provider
        What answered the scans.
    scans
        Number of scans of each label.
    independent_scans
        How many scans without near-duplicates are worth as much, for each label.
    fingerprint
        SHA-256 over contents and labels of the scans.
    metrics
        What to expect with the new threshold on such scans, judged on scans that did not choose it.
    """

    temperature: float
    log_odds_offset: float
    prevalence: float | None
    original_threshold: float | None
    threshold_rule: str
    created: str
    artifact: str
    engine: str
    provider: str
    scans: dict[str, int]
    independent_scans: dict[str, int]
    fingerprint: str
    metrics: dict[str, Metric] = field(default_factory=dict)

    def problems(self) -> list[tuple[bool, str]]:
        """Return whether a value is out of range, and a message, for each value whose type does not limit it."""
        low, high = TEMPERATURES
        limits: list[tuple[str, float | None, float, float]] = [
            ("temperature", self.temperature, low, high),
            ("log_odds_offset", self.log_odds_offset, -MAX_OFFSET, MAX_OFFSET),
            ("prevalence", self.prevalence, 0, 1),
            ("original_threshold", self.original_threshold, 0, 1),
        ]
        return [
            (
                value is not None and not least <= value <= most,
                f"recalibration: {name}: must be in [{least:g}, {most:g}]. Received: {value}",
            )
            for name, value, least, most in limits
        ]


@dataclass(frozen=True)
class HeatmapScore:
    """How well the heatmaps of one artifact point at lesions that were drawn at known places in healthy scans.

    Attributes
    ----------
    created
        Date and time.
    artifact, sha256, engine, provider
        What was measured. Other artifacts and engines may give other heatmaps.
    method
        How the heatmaps were computed.
    scans, lesions
        Number of healthy scans, and of lesions drawn in them.
    data
        Which scans these are.
    fingerprint
        SHA-256 over the contents of the scans.
    metrics
        The figures by name; ``authoring.heatmap_score`` says what each one is.
    hot_spot
        Log-odds below which a map shows nothing, chosen on healthy validation scans; None if they were too few.
    """

    created: str
    artifact: str
    sha256: str
    engine: str
    provider: str
    method: str
    scans: int
    lesions: int
    data: str
    fingerprint: str
    metrics: dict[str, Metric] = field(default_factory=dict)
    hot_spot: float | None = None


@dataclass(frozen=True)
class SeriesRule:
    """How the answers for the slices of a series become one answer; ``inference.aggregate`` applies it.

    The score of a series is the highest probability that at least half of the slices in some window of neighbors reach.

    Attributes
    ----------
    window_mm
        Distance between the first and the last slice of a window, at least.
    least_slices
        Slices in a window, at least.
    threshold
        Least score of a positive series; None: the threshold of the model.
    calibration
        On what data these values were chosen.
    """

    window_mm: float
    least_slices: int
    threshold: float | None
    calibration: str

    def problems(self) -> list[tuple[bool, str]]:
        """Return whether a value is out of range, and a message, for each value whose type does not limit it."""
        return [
            (self.window_mm < 0, f"series: window_mm: must be at least 0. Received: {self.window_mm}"),
            (self.least_slices < 1, f"series: least_slices: must be at least 1. Received: {self.least_slices}"),
            (
                self.threshold is not None and not 0 <= self.threshold <= 1,
                f"series: threshold: must be in [0, 1]. Received: {self.threshold}",
            ),
        ]


@dataclass(frozen=True)
class Manifest:
    """The whole manifest.

    ``labels`` are in index order. ``positive`` is the index of the label to which sensitivity and ``threshold`` refer;
    models with more than two labels may have none, and then have no threshold either. Without a threshold the answer is
    the most probable label. With a ``recalibration``, ``threshold`` refers to recalibrated probabilities, and
    ``metrics`` are those before it. ``heatmaps`` is None until they are scored. ``series`` is None in bundles without a
    rule of their own, for which ``inference.aggregate`` has a default.
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
    recalibration: Recalibration | None = None
    heatmaps: HeatmapScore | None = None
    series: SeriesRule | None = None
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
        """SHA-256 over everything that determines an answer.

        That is artifacts, labels, threshold, preprocessing, in a recalibrated bundle how the answers change, and the
        bundle's rule for series if it has one. It differs between trainings. Packing, unpacking, signing or renaming a
        bundle does not change it.
        """
        facts = [
            sorted(artifact.sha256 for artifact in self.artifacts),
            self.labels,
            self.positive,
            self.threshold,
            self._plain_preprocessing(),
        ]
        if self.recalibration:
            facts += [self.recalibration.temperature, self.recalibration.log_odds_offset]
        if self.series:
            facts += [self.series.window_mm, self.series.least_slices, self.series.threshold]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def to_plain(self) -> dict[str, Any]:
        """Return plain types, with the schema version that the content needs.

        Version 2 added recalibration, version 3 the framing of the head. An earlier release that ignored one of them
        would give other answers.

        Optional parts of later releases are left out if they are None, so that older manifests keep their bytes.
        """
        plain = to_plain(self)
        for part in ("recalibration", "heatmaps", "series"):
            if plain[part] is None:
                del plain[part]
        for artifact in plain[json_key("artifacts")]:
            for tensor in (artifact["input"], artifact["output"]):
                if tensor["quantization"] is None:
                    del tensor["quantization"]
        plain["preprocessing"] = self._plain_preprocessing()
        plain["schema_version"] = self._needed_version()
        return plain

    def _plain_preprocessing(self) -> dict[str, Any]:
        """Return plain types without the default framing, which earlier manifests and hashes do not contain."""
        plain = dataclasses.asdict(self.preprocessing)
        if self.preprocessing.framing == "picture":
            del plain["framing"]
        return plain

    def _needed_version(self) -> int:
        if self.preprocessing.framing != "picture":
            return FRAMED_VERSION
        return RECALIBRATED_VERSION if self.recalibration else SCHEMA_VERSION

    def to_json(self) -> str:
        """Return indented JSON text that ends with a line feed. Raises ManifestError for NaN and infinity."""
        try:
            return json.dumps(self.to_plain(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
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
        if isinstance(version, bool | list | dict) or version not in _VERSIONS:  # True equals 1
            raise ManifestError(
                f"{origin}: manifest schema version must be {SCHEMA_VERSION} to {FRAMED_VERSION}. "
                f"Received: {version!r}",
                "A newer bundle needs a newer mri-edge; anything else is not a manifest of mri-edge",
            )
        manifest = read(cls, data, origin)
        manifest._check(origin)
        return manifest

    def artifact(self, file: str) -> Artifact | None:
        """Return the artifact with that file name, or None."""
        return next((artifact for artifact in self.artifacts if artifact.file == file), None)

    def document(self, file: str) -> Document | None:
        """Return the document with that file name, or None."""
        return next((document for document in self.documents if document.file == file), None)

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
        recalibration = self.recalibration
        problems = [
            (
                recalibration is not None and self.schema_version < RECALIBRATED_VERSION,
                f"recalibration: needs schema version {RECALIBRATED_VERSION} or later. Received: {self.schema_version}",
            ),
            (
                self.preprocessing.framing != "picture" and self.schema_version < FRAMED_VERSION,
                f"preprocessing.framing: {self.preprocessing.framing!r} needs schema version {FRAMED_VERSION}. "
                f"Received: {self.schema_version}",
            ),
            *([] if recalibration is None else recalibration.problems()),
            *([] if self.series is None else self.series.problems()),
            (len(self.labels) < 2, f"labels: at least two are needed. Received: {list(self.labels)}"),
            (len(set(self.labels)) < len(self.labels), f"labels: repeated in {list(self.labels)}"),
            (
                self.positive is not None and not 0 <= self.positive < len(self.labels),
                f"positive: no label has index {self.positive}",
            ),
            (
                self.positive is None and len(self.labels) == 2,
                f"positive: must be the index of one of the two labels {list(self.labels)}. Received: null",
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
