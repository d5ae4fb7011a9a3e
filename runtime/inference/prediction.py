"""What a prediction says: label, probabilities, what ran, how long each part took."""

from __future__ import annotations

import codecs
import json
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_edge.errors import InputError
from mri_edge.scans.result_warning import ResultWarning

NOTICE = "Research use only: not a medical device."
SCHEMA_VERSION = 1  # of results: result.schema.json. Keys may be added within a version; a changed meaning is a new one


def decide(probabilities: NDArray[np.float32], positive: int, threshold: float | None) -> NDArray[np.intp]:
    """Label index of each row: the one rule for prediction, parity and evaluation.

    Parameters
    ----------
    probabilities
        float32 (N, classes).
    positive, threshold
        As in the manifest. A row is positive if its probability of ``positive`` is at least
        ``threshold``, else it gets the likeliest other label; ``None``: the likeliest of all.

    Returns
    -------
    int (N,)
    """
    others = probabilities.copy()
    if threshold is None:
        chosen: NDArray[np.intp] = others.argmax(axis=1)
        return chosen
    others[:, positive] = -1
    chosen = others.argmax(axis=1)
    chosen[probabilities[:, positive] >= threshold] = positive
    return chosen


def as_json(record: dict[str, Any], *, indent: int | None = None) -> str:
    """JSON text that can be written and shown whatever the names in it are.

    Linux lets them be no UTF-8, and hold what moves a terminal's cursor or turns the direction of writing.
    """
    text = json.dumps(record, ensure_ascii=False, indent=indent)
    return text if text.replace("\n", "").isprintable() else json.dumps(record, indent=indent)


_CONTROLS = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}


def stdout_json(record: dict[str, Any], *, indent: int | None = None) -> str:
    """``as_json`` for standard output: in ASCII where that is not UTF-8, which readers of JSON expect.

    JSON escapes the control codes below U+0020 alone; those above act on a terminal as well.
    """
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    if codecs.lookup(encoding).name == "utf-8":
        return as_json(record, indent=indent).translate(_CONTROLS)
    return json.dumps(record, indent=indent).translate(_CONTROLS)


@dataclass(frozen=True)
class Latency:
    """Milliseconds for one scan. ``infer`` is the batch's time divided by its size."""

    decode: float
    resize: float
    infer: float

    @property
    def total(self) -> float:
        """Sum of the parts, in milliseconds."""
        return self.decode + self.resize + self.infer


@dataclass(frozen=True)
class Prediction:
    """The answer for one scan.

    Attributes
    ----------
    file
        The path as it was given, or ``None`` for a picture that came as bytes or an array.
    label
        What ``decide`` says.
    probabilities
        Of each label, in [0, 1], in the manifest's order.
    model, model_hash, artefact, engine, provider
        What ran: model name and version, the first 12 digits of the artefact's SHA-256, file in the bundle, engine,
        execution provider as read back.
    warnings
        Reasons to doubt the answer.
    heatmap
        Path of the picture that shows what spoke for the positive label, where one was written.
    activation
        Grad-CAM of the positive label, float32 (h, w), at least 0, where the artefact gives it; else ``None``.
        Not part of ``to_dict``.
    pixels
        The scan as it was decoded, uint8 (H, W, 3) RGB, where ``predict_batches`` was told to keep it.
        Not part of ``to_dict``.
    """

    file: str | None
    label: str
    probabilities: dict[str, float]
    positive: str
    threshold: float | None
    model: str
    model_hash: str
    artefact: str
    engine: str
    provider: str
    latency_ms: Latency
    warnings: tuple[ResultWarning, ...] = ()
    heatmap: str | None = None
    activation: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)
    pixels: NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)

    @property
    def probability(self) -> float:
        """Probability of the positive label."""
        return self.probabilities[self.positive]

    def to_dict(self) -> dict[str, Any]:
        """Plain types only: what ``mri-edge predict --json`` prints, one object a line; see ``result.schema.json``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "file": self.file,
            "label": self.label,
            "probabilities": self.probabilities,
            "positive": self.positive,
            "threshold": self.threshold,
            "model": self.model,
            "model_hash": self.model_hash,
            "artefact": self.artefact,
            "engine": self.engine,
            "provider": self.provider,
            "latency_ms": {
                "decode": round(self.latency_ms.decode, 3),
                "resize": round(self.latency_ms.resize, 3),
                "infer": round(self.latency_ms.infer, 3),
                "total": round(self.latency_ms.total, 3),
            },
            "warnings": [asdict(warning) for warning in self.warnings],
            **({} if self.heatmap is None else {"heatmap": self.heatmap}),
            "notice": NOTICE,
        }


class Pause:
    """Stands among sources where the next may be long in coming: what came before is to be answered now."""


@dataclass(frozen=True)
class Failure:
    """Stands in the place of a prediction for a scan that could not be read."""

    file: str | None
    error: InputError

    def to_dict(self) -> dict[str, Any]:
        """Plain types only: what went wrong, for people and for programs; see ``result.schema.json``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "file": self.file,
            "error": self.error.problem,
            "hint": self.error.hint,
            "code": self.error.code,
            "value": self.error.value,
            "limit": self.error.limit,
        }
