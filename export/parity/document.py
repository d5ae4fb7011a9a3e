"""Write ``parity.json``, every comparison with what it was measured on, and its page."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from mri_edge.authoring.intervals import wilson_interval
from mri_edge.authoring.writer import BundleWriter
from mri_edge.bundles.manifest import Manifest
from mri_edge.inference.prediction import decide

from .comparison import ReferenceImages
from .report import PAGE, page

PARITY = "parity.json"


def write_parity(
    writer: BundleWriter, images: ReferenceImages, comparisons: dict[str, dict[str, Any]], facts: dict[str, Any]
) -> None:
    """Add ``parity.json`` and its page to a bundle that is being written.

    Comparisons from an earlier export stay if it was made from the same model and split.

    Parameters
    ----------
    comparisons
        ``Comparison.to_dict`` of each artefact, by file name.
    facts
        The model and the split that were compared; equal facts mean the same comparison.
    """
    previous = writer.folder / PARITY
    if previous.is_file():
        known = json.loads(previous.read_text(encoding="utf-8"))
        if all(known.get(name) == value for name, value in facts.items()):
            listed = {artefact.file for artefact in writer.manifest.artefacts}
            kept = {file: comparison for file, comparison in known["artefacts"].items() if file in listed}
            comparisons = kept | comparisons
    content = document(images, writer.manifest, comparisons, facts)
    writer.add_document(PARITY, to_json(content))
    writer.add_document(
        PAGE, page(content, {artefact.file: artefact.size_bytes for artefact in writer.manifest.artefacts})
    )


def document(
    images: ReferenceImages, manifest: Manifest, comparisons: dict[str, dict[str, Any]], facts: dict[str, Any]
) -> dict[str, Any]:
    """The content of ``parity.json``: the facts, the Keras model's answers, and every comparison."""
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
