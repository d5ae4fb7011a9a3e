"""Set the threshold of a bundle of two labels to that of a cross-validation, and compute every dependent figure again.

    mri-edge train --recipe small --cv 3 --data DIR --backbone-weights torchvision --out CV
    python scripts/set_threshold.py BUNDLE CV/crossval.json

The model does not run: its answers for the test images are in ``metrics.json`` and ``parity.json``.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mri_edge.authoring.card import METRICS
from mri_edge.authoring.teacher import TEACHER, TeacherAnswers
from mri_edge.authoring.writer import BundleWriter, rewrite_bundle
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import Manifest
from mri_edge.export.parity.comparison import Comparison, ReferenceImages, compare
from mri_edge.export.parity.document import PAGE, PARITY, document, page, to_json
from mri_edge.export.parity.gate import Gate
from mri_edge.train.bundle import metrics_document
from mri_edge.train.evaluation.metrics import measure


def threshold_for(manifest: Manifest, crossval: dict[str, Any]) -> dict[str, Any]:
    """Return value and rule of a cross-validation's threshold. Raises SystemExit if it is of another kind of model."""
    wanted = {
        "recipe": manifest.training.recipe,
        "labels": list(manifest.labels),
        "positive": manifest.positive,
        # The same images in the same roles, so that no test image of the model influenced the threshold.
        "split_fingerprint": manifest.training.split_fingerprint,
    }
    for name, expected in wanted.items():
        if crossval.get(name) != expected:
            raise SystemExit(
                f"the cross-validation is of another {name.replace('_', ' ')}: {crossval.get(name)}, "
                f"the model has {expected}. "
                "If it has none, run its command again: finished folds are kept"
            )
    threshold: dict[str, Any] = crossval["threshold"]
    return threshold


def set_threshold(bundle: Bundle, threshold: float, rule: str) -> Manifest:
    """Rewrite the bundle and return its new manifest."""
    documents = {document.file: bundle.path_of(document) for document in bundle.manifest.documents}
    training = bundle.manifest.training
    with rewrite_bundle(bundle) as writer:
        writer.update(
            threshold=threshold,
            training=replace(training, details={**training.details, "threshold_rule": rule}),
        )
        _update_metrics(writer, json.loads(documents[METRICS].read_bytes()))
        teacher = TeacherAnswers.from_json(documents[TEACHER].read_bytes()) if TEACHER in documents else None
        _update_parity(writer, json.loads(documents[PARITY].read_bytes()), teacher)
        return writer.manifest


def _update_metrics(writer: BundleWriter, known: dict[str, Any]) -> None:
    manifest, test = writer.manifest, known["test"]
    y_true = np.array([image["label"] for image in test], np.intp)
    probabilities = np.array([image["probabilities"] for image in test], np.float32)
    metrics = measure(y_true, probabilities, manifest.positive, manifest.threshold)
    writer.update(metrics=metrics)
    # A shipped bundle names images by their hashes; the folder of each label is taken from the old record.
    folder = {entry["label"]: entry["folder"] for entry in known["folders"]}
    files = [image["file"] if "/" in image["file"] else f"{folder[image['label']]}/{image['file']}" for image in test]
    decision = (manifest.positive, manifest.threshold)
    text = metrics_document(files, y_true, probabilities, *decision, metrics, known["history"], names=manifest.labels)
    content = json.loads(text)
    content["test"] = test
    writer.add_document(METRICS, json.dumps(content, indent=1) + "\n")


def _update_parity(writer: BundleWriter, known: dict[str, Any], teacher: TeacherAnswers | None) -> None:
    manifest, images = writer.manifest, known["images"]
    reference = ReferenceImages(
        tuple(image["file"] for image in images),
        tuple(image["sha256"] for image in images),
        np.array([manifest.labels.index(image["label"]) for image in images], np.intp),
        np.array([image["probabilities"] for image in images], np.float32),
        teacher,
    )
    found = {}
    for file, row in known["artefacts"].items():
        positive = np.array(row["probabilities"], np.float32)
        answer = np.stack([1 - positive, positive] if manifest.positive else [positive, 1 - positive], axis=1)
        settings = {name: row[name] for name in ("engine", "provider", "threads")}
        found[file] = _keep_distances(compare(answer, reference, manifest, Gate(**row["gate"]), **settings), row)
    failed = {file: comparison.reasons for file, comparison in found.items() if comparison.verdict == "not met"}
    refused = [f"{file}: {reason}" for file, reasons in failed.items() for reason in reasons]
    if refused:
        raise SystemExit(f"at this threshold the gate refuses {'; '.join(refused)}")
    facts = {name: known[name] for name in ("reference", "split_fingerprint")}
    content = document(reference, manifest, {file: comparison.to_dict() for file, comparison in found.items()}, facts)
    writer.add_document(PARITY, to_json(content))
    artifacts = manifest.artifacts
    if any(document.file == PAGE for document in manifest.documents):
        writer.add_document(PAGE, page(content, {artifact.file: artifact.size_bytes for artifact in artifacts}))
    summaries = {file: comparison.summary() for file, comparison in found.items()}
    writer.update(
        artifacts=tuple(
            replace(artifact, parity=summaries.get(artifact.file, artifact.parity)) for artifact in artifacts
        )
    )


def _keep_distances(compared: Comparison, known: dict[str, Any]) -> Comparison:
    """Keep the measured distances: the probability of the other label was recorded only for Keras."""
    distances = ("max_difference", "mean_difference", "p99_difference", "max_logit_difference")
    teacher = compared.teacher and replace(compared.teacher, mean_difference=known["teacher"]["mean_difference"])
    return replace(compared, **{name: known[name] for name in distances}, teacher=teacher)


def main() -> None:
    """Read the threshold, rewrite the bundle, and print the old and the new figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("crossval", type=Path)
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    if len(bundle.manifest.labels) != 2:
        raise SystemExit(f"{options.bundle}: {len(bundle.manifest.labels)} labels; two are needed")
    found = threshold_for(bundle.manifest, json.loads(options.crossval.read_bytes()))
    manifest, old = set_threshold(bundle, found["value"], found["rule"]), bundle.manifest
    print(f"{options.bundle}: threshold {old.threshold} -> {manifest.threshold}")
    for name, metric in manifest.metrics.items():
        print(f"{name:<18} {old.metrics[name].value:.3f} -> {metric.value:.3f}  [{metric.low:.3f}, {metric.high:.3f}]")


if __name__ == "__main__":
    main()
