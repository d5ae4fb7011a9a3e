"""Define the result for one frame, a prediction or a failure, the rule that chooses its label, and its JSON."""

from __future__ import annotations

import codecs
import json
import os
import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_edge.bundles.manifest import Manifest
from mri_edge.errors import InputError
from mri_edge.records import dataclass
from mri_edge.scans.checks import ResultWarning

NOTICE = "Research use only: not a medical device."
# Log-odds: the odds change by a factor of 2.7. A map that stays below has no hot spot, unless its bundle has a limit.
HOT_SPOT = 1.0
SCHEMA_VERSION = 1  # of result.schema.json. Keys may be added within a version; a change of meaning needs a new one
_SMALLEST = 1e-12  # probabilities below it count as this one: the logarithm of 0 is infinite
_MAX_NAME_BYTES = 200  # file systems allow 255, and temporary names are 20 longer


def decide(probabilities: NDArray[np.float32], positive: int | None, threshold: float | None) -> NDArray[np.intp]:
    """Return the label index of each row. Prediction, parity and evaluation all use this rule.

    Parameters
    ----------
    probabilities
        float32 (N, classes).
    positive, threshold
        As in the manifest. A row is positive if its probability of ``positive`` is at least ``threshold``, otherwise it
        gets the likeliest other label. Without a positive label or a threshold it gets the likeliest label of all.

    Returns
    -------
    int (N,)
    """
    others = probabilities.copy()
    if positive is None or threshold is None:
        chosen: NDArray[np.intp] = others.argmax(axis=1)
        return chosen
    others[:, positive] = -1
    chosen = others.argmax(axis=1)
    chosen[probabilities[:, positive] >= threshold] = positive
    return chosen


def displayed_label(answer: str, positive: str | None, labels: Collection[str]) -> str:
    """Return the label of which people are shown the probability: the positive one of two, otherwise the answer."""
    return answer if positive is None or len(labels) > 2 else positive


def recalibrated(probabilities: NDArray[np.float32], manifest: Manifest) -> NDArray[np.float32]:
    """Turn an artifact's answers, float32 (N, classes), into the probabilities of the bundle.

    This is the only place where a recalibration is applied: ``Classifier`` and the labels of ``replay`` use it.
    Golden values and parity compare what the artifact itself gives. Without a recalibration nothing changes.
    """
    change = manifest.recalibration
    if change is None:
        return probabilities
    return rescale(probabilities, change.temperature, change.log_odds_offset, manifest.positive)


def rescale(
    probabilities: NDArray[np.float32], temperature: float, log_odds_offset: float, positive: int | None
) -> NDArray[np.float32]:
    """Return softmax(log(p) / temperature + offset), where only the positive label has an offset.

    Parameters
    ----------
    probabilities
        float32 (N, classes), finite.
    temperature, log_odds_offset, positive
        As in the manifest and its recalibration.

    Returns
    -------
    float32 (N, classes), each row with the sum 1.
    """
    logits = np.log(np.clip(probabilities.astype(np.float64), _SMALLEST, 1)) / temperature
    if positive is not None:
        logits[:, positive] += log_odds_offset
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: NDArray[np.float32] = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return result


def as_json(record: dict[str, Any], *, indent: int | None = None) -> str:
    """Return JSON that can be written and displayed with any file names in it.

    On Linux a name may be invalid UTF-8, and may contain codes that move the cursor or reverse the text direction.
    """
    text = json.dumps(record, ensure_ascii=False, indent=indent)
    return text if text.replace("\n", "").isprintable() else json.dumps(record, indent=indent)


_CONTROLS = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}


def stdout_json(record: dict[str, Any], *, indent: int | None = None) -> str:
    """Return ``as_json`` for standard output. It is ASCII unless the output is UTF-8, which readers of JSON expect.

    JSON escapes only the control codes below U+0020. Those from U+007F on also act on a terminal.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    if codecs.lookup(encoding).name == "utf-8":
        return as_json(record, indent=indent).translate(_CONTROLS)
    return json.dumps(record, indent=indent).translate(_CONTROLS)


@dataclass(frozen=True)
class Latency:
    """Milliseconds for one frame. ``infer`` is the time of the batch divided by its size."""

    decode: float
    resize: float
    infer: float

    @property
    def total(self) -> float:
        """Sum of the parts, in milliseconds."""
        return self.decode + self.resize + self.infer


@dataclass(frozen=True)
class Prediction:
    """The answer for one frame of a scan; most scans have one.

    Attributes
    ----------
    source
        The path as it was given, or ``None`` for bytes, an image or an array.
    index, frames
        Position of the frame in its source, from 0, and how many frames the source holds.
    label
        The label that ``decide`` chose.
    probabilities
        Probability of each label, in [0, 1], in the manifest's order.
    positive, threshold
        As in the manifest. Models with more than two labels may have neither.
    model, model_hash, artifact, engine, provider
        What ran: model name and version, the first 12 digits of the artifact's SHA-256, its file in the bundle, the
        engine, and the execution provider that the engine reports.
    tuned
        Whether artifact, engine and threads are those that ``mri-edge tune`` found to be the fastest.
    warnings
        Reasons to distrust the answer.
    heatmap
        How much the log-odds of the label ``explained`` fall where the scan is covered: float32 (h, w), at least 0,
        0 outside the head, if ``explain`` was set. It spans the frame, in the resolution of the network's input. A map
        that stays below ``hot_spot`` shows nothing. Not part of ``to_dict``.
    hot_spot
        Log-odds from which a region of ``heatmap`` is shown, measured for the artifact; see ``HeatmapScore``. Not part
        of ``to_dict``.
    explained
        The label that ``heatmap`` is about: the positive one of two labels; of more than two labels, ``label``. Not
        part of ``to_dict``.
    heatmap_file
        Path of the picture of the heatmap, if one was written.
    pixels
        The section of the decoded frame that the network gets, before resizing, uint8 (H, W, 3) RGB, if
        ``keep_pixels`` was set. Not part of ``to_dict``.
    metadata
        What the reader found and used, under the name of the format, ``"dicom"`` or ``"nifti"``: the window, the
        rescale, the plane, the position. Empty for pictures.
    """

    source: str | None
    label: str
    probabilities: dict[str, float]
    positive: str | None
    threshold: float | None
    model: str
    model_hash: str
    artifact: str
    engine: str
    provider: str
    latency_ms: Latency
    warnings: tuple[ResultWarning, ...] = ()
    index: int = 0
    frames: int = 1
    heatmap: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)
    hot_spot: float = HOT_SPOT
    explained: str | None = field(default=None, repr=False, compare=False)
    heatmap_file: str | None = None
    pixels: NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    tuned: bool = False

    @property
    def probability(self) -> float:
        """Probability of the positive label or, for a model without one, of ``label``."""
        return self.probabilities[self.label if self.positive is None else self.positive]

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, which ``mri-edge predict --json`` prints as one line; see ``result.schema.json``."""
        return {
            "schema_version": SCHEMA_VERSION,
            **_key(self.source, self.index, self.frames),
            "label": self.label,
            "probabilities": self.probabilities,
            "positive": self.positive,
            "threshold": self.threshold,
            "model": self.model,
            "model_hash": self.model_hash,
            "artefact": self.artifact,
            "engine": self.engine,
            "provider": self.provider,
            **({"tuned": True} if self.tuned else {}),
            "latency_ms": {
                "decode": round(self.latency_ms.decode, 3),
                "resize": round(self.latency_ms.resize, 3),
                "infer": round(self.latency_ms.infer, 3),
                "total": round(self.latency_ms.total, 3),
            },
            "warnings": [asdict(warning) for warning in self.warnings],
            **({} if self.heatmap_file is None else {"heatmap": self.heatmap_file}),
            **self.metadata,
            "notice": NOTICE,
        }


@dataclass(frozen=True)
class Failure:
    """The result for a scan, or a frame of it, that could not be read."""

    source: str | None
    error: InputError
    index: int = 0
    frames: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Return plain types: the problem, for people and for programs; see ``result.schema.json``."""
        return {
            "schema_version": SCHEMA_VERSION,
            **_key(self.source, self.index, self.frames),
            "error": self.error.problem,
            "hint": self.error.hint,
            "code": self.error.code,
            "value": self.error.value,
            "limit": self.error.limit,
        }


def frame_name(name: str, index: int, frames: int) -> str:
    """Return the name for the files of one frame: that of the scan, and ``-INDEX`` if the scan has several frames."""
    return name if frames == 1 else f"{name}-{index}"


def _key(source: str | None, index: int, frames: int) -> dict[str, Any]:
    """Return what identifies a frame in JSON. A scan of one frame is identified by its path alone."""
    return {"file": source} if frames == 1 else {"file": source, "index": index, "frames": frames}


def is_too_long(name: str) -> bool:
    """Whether a scan's name is too long to add a suffix."""
    return len(os.fsencode(name)) > _MAX_NAME_BYTES


def hashed_name(name: str, sha256: str) -> str:
    """Insert the first 12 digits of a hash into a scan's name, shortened if needed: ``a.0123456789ab.png``."""
    stem, suffix = Path(name).stem, Path(name).suffix
    if len(os.fsencode(suffix)) > _MAX_NAME_BYTES // 2:  # it would leave no space for the stem and the hash
        stem, suffix = name, ""
    return f"{_cut(stem, _MAX_NAME_BYTES - 13 - len(os.fsencode(suffix)))}.{sha256[:12]}{suffix}"


def _cut(text: str, size: int) -> str:
    """Return the start of a name, at most ``size`` bytes in the file system's encoding."""
    while len(os.fsencode(text)) > size:
        text = text[:-1]
    return text
