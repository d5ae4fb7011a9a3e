"""Write the record of all comparisons, ``parity.json``, and its page, ``report/parity.html``."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mri_edge.authoring.intervals import wilson_interval
from mri_edge.authoring.pages import render
from mri_edge.authoring.writer import BundleWriter
from mri_edge.bundles.decode import parse
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

    Comparisons of an earlier export are kept if it used the same model, split and threshold. Otherwise the manifest
    loses the verdicts of the artifacts that were not compared again.

    Parameters
    ----------
    comparisons
        ``Comparison.to_dict`` of each artifact, by file name.
    facts
        Which model and split were compared, at which threshold. They decide whether earlier comparisons are kept.
    """
    previous = writer.folder / PARITY
    if previous.is_file():
        known = parse(previous.read_bytes(), str(previous))
        if isinstance(known, dict) and all(known.get(name) == value for name, value in facts.items()):
            listed = {artifact.file for artifact in writer.manifest.artifacts}
            # Earlier releases compared on the test images alone, and did not say so.
            kept = {
                file: {
                    "test_images": comparison["images"],
                    "test_flips": len(comparison["flips"]),
                    "others": None,
                    **comparison,
                }
                for file, comparison in known["artefacts"].items()
                if file in listed
            }
            comparisons = kept | comparisons
    artifacts = writer.manifest.artifacts
    writer.update(
        artifacts=tuple(entry if entry.file in comparisons else replace(entry, parity=None) for entry in artifacts)
    )
    content = document(images, writer.manifest, comparisons, facts)
    writer.add_document(PARITY, to_json(content))
    writer.add_document(
        PAGE, page(content, {artifact.file: artifact.size_bytes for artifact in writer.manifest.artifacts})
    )


def document(
    images: ReferenceImages, manifest: Manifest, comparisons: dict[str, dict[str, Any]], facts: dict[str, Any]
) -> dict[str, Any]:
    """The content of ``parity.json``: the facts, the Keras model's answers for the test images, and all comparisons.

    Of the other images it names those whose label changes.
    """
    tests = images.tests
    called = decide(images.reference, manifest.positive, manifest.threshold)[:tests]
    right = called == images.labels[:tests]
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
                images.files[:tests], images.stages, images.labels[:tests], images.reference[:tests], strict=True
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
    """Coordinates in pixels of a plot of the artifact's probabilities (y) against those of Keras (x).

    They are of the positive label or, without one, of the label that Keras chose, which has no line of a threshold.
    """
    positive = parity["positive"]
    threshold = 0.5 if parity["threshold"] is None else parity["threshold"]
    references = [
        max(image["probabilities"]) if positive is None else image["probabilities"][positive]
        for image in parity["images"]
    ]
    named = list(zip(parity["images"], references, artifact["probabilities"], strict=True))
    points = [(image["file"], reference, probability) for image, reference, probability in named]
    tests = {image["file"] for image in parity["images"]}
    if positive is not None:  # of the other images, those whose label changes
        points += [
            (flip["file"], flip["reference_probability"], flip["artefact_probability"])
            for flip in artifact["flips"]
            if flip["file"] not in tests
        ]
    changed = {flip["file"] for flip in artifact["flips"]}
    return {
        "size": _SIDE + 2 * _MARGIN,
        "side": _SIDE,
        "left": _x(0),
        "right": _x(1),
        "top": _y(1),
        "bottom": _y(0),
        "middle": _x(0.5),
        "threshold_x": None if positive is None else _x(threshold),
        "threshold_y": None if positive is None else _y(threshold),
        "of": "the label that Keras chose" if positive is None else parity["labels"][positive],
        "points": [
            {
                "x": _x(reference),
                "y": _y(probability),
                "changed": file in changed,
                "title": f"{file}: {reference:.4f}, {probability:.4f}",
            }
            for file, reference, probability in points
        ],
    }


def _x(probability: float) -> float:
    return _MARGIN + probability * _SIDE


def _y(probability: float) -> float:
    return _MARGIN + (1 - probability) * _SIDE
