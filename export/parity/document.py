"""Write the record of all comparisons, ``parity.json``, and its page, ``report/parity.html``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mri_edge.authoring.intervals import wilson_interval
from mri_edge.authoring.pages import render
from mri_edge.authoring.writer import BundleWriter
from mri_edge.bundles.manifest import Manifest
from mri_edge.inference.prediction import decide

from .comparison import ReferenceImages

PARITY = "parity.json"
PAGE = "report/parity.html"
_TEMPLATE = Path(__file__).with_name("parity.html.jinja")
_SIDE, _MARGIN = 260, 34  # pixels of a scatter plot


def write_parity(
    writer: BundleWriter, images: ReferenceImages, comparisons: dict[str, dict[str, Any]], facts: dict[str, Any]
) -> None:
    """Add ``parity.json`` and its page to a bundle that is being written.

    Comparisons of an earlier export are kept if it used the same model and split.

    Parameters
    ----------
    comparisons
        ``Comparison.to_dict`` of each artifact, by file name.
    facts
        Which model and split were compared. They decide whether earlier comparisons are kept.
    """
    previous = writer.folder / PARITY
    if previous.is_file():
        known = json.loads(previous.read_text(encoding="utf-8"))
        if all(known.get(name) == value for name, value in facts.items()):
            listed = {artifact.file for artifact in writer.manifest.artifacts}
            kept = {file: comparison for file, comparison in known["artefacts"].items() if file in listed}
            comparisons = kept | comparisons
    content = document(images, writer.manifest, comparisons, facts)
    writer.add_document(PARITY, to_json(content))
    writer.add_document(
        PAGE, page(content, {artifact.file: artifact.size_bytes for artifact in writer.manifest.artifacts})
    )


def document(
    images: ReferenceImages, manifest: Manifest, comparisons: dict[str, dict[str, Any]], facts: dict[str, Any]
) -> dict[str, Any]:
    """The content of ``parity.json``: the facts, the Keras model's answers, and all comparisons."""
    right = decide(images.reference, manifest.positive, manifest.threshold) == images.labels
    return {
        **facts,
        "labels": list(manifest.labels),
        "positive": manifest.positive,
        "threshold": manifest.threshold,
        "reference_accuracy": asdict(wilson_interval(int(right.sum()), len(right))),
        "images": [
            {
                "file": file,
                "sha256": stages,
                "label": manifest.labels[label],
                "probabilities": [float(value) for value in row],
            }
            for file, stages, label, row in zip(
                images.files, images.stages, images.labels, images.reference, strict=True
            )
        ],
        "artefacts": comparisons,
    }


def to_json(content: dict[str, Any]) -> str:
    """The text of ``parity.json``."""
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def page(parity: dict[str, Any], sizes: dict[str, int]) -> str:
    """HTML text from the content of ``parity.json`` and the size of each artifact in bytes."""
    plots = {file: _scatter(artifact, parity) for file, artifact in parity["artefacts"].items()}
    return render(_TEMPLATE, title="Parity report", parity=parity, sizes=sizes, plots=plots)


def _scatter(artifact: dict[str, Any], parity: dict[str, Any]) -> dict[str, Any]:
    """Coordinates in pixels of a plot of the artifact's probabilities (y) against those of Keras (x)."""
    positive = parity["positive"]
    threshold = parity["threshold"] if parity["threshold"] is not None else 0.5
    changed = {flip["file"] for flip in artifact["flips"]}
    points = []
    for image, probability in zip(parity["images"], artifact["probabilities"], strict=True):
        reference = image["probabilities"][positive]
        points.append(
            {
                "x": _x(reference),
                "y": _y(probability),
                "changed": image["file"] in changed,
                "title": f"{image['file']}: {reference:.4f}, {probability:.4f}",
            }
        )
    return {
        "size": _SIDE + 2 * _MARGIN,
        "side": _SIDE,
        "left": _x(0),
        "right": _x(1),
        "top": _y(1),
        "bottom": _y(0),
        "middle": _x(0.5),
        "threshold_x": _x(threshold),
        "threshold_y": _y(threshold),
        "points": points,
    }


def _x(probability: float) -> float:
    return _MARGIN + probability * _SIDE


def _y(probability: float) -> float:
    return _MARGIN + (1 - probability) * _SIDE
