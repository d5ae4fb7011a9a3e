"""Give a bundle of two labels the threshold of a cross-validation, and every figure that hangs on it anew.

    mri-edge train --recipe small --cv 3 --data DIR --backbone-weights torchvision --out CV
    python scripts/set_threshold.py BUNDLE CV/crossval.json

Nothing is asked of the model again: its answers on the test images stand in ``metrics.json`` and ``parity.json``.
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
from mri_edge.authoring.writer import BundleWriter, rewriting
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import Manifest
from mri_edge.export.parity.comparison import Comparison, ReferenceImages, compare
from mri_edge.export.parity.document import PARITY, document, to_json
from mri_edge.export.parity.gate import Gate
from mri_edge.export.parity.report import PAGE, page
from mri_edge.train.bundle import metrics_document
from mri_edge.train.evaluation.metrics import measure


def threshold_for(manifest: Manifest, crossval: dict[str, Any]) -> dict[str, Any]:
    """Value and rule of a cross-validation's threshold. Raises SystemExit if they are not of such a model."""
    wanted = {
        "recipe": manifest.training.recipe,
        "labels": list(manifest.labels),
        "positive": manifest.positive,
        # The same images in the same roles: no test image of the model has chosen its threshold.
        "split_fingerprint": manifest.training.split_fingerprint,
    }
    for name, of_model in wanted.items():
        if crossval.get(name) != of_model:
            raise SystemExit(
                f"the cross-validation is of another {name.replace('_', ' ')}: {crossval.get(name)}, "
                f"the model's is {of_model}. "
                "If it does not say, run its command again: it takes up the finished folds"
            )
    threshold: dict[str, Any] = crossval["threshold"]
    return threshold


def set_threshold(bundle: Bundle, threshold: float, rule: str) -> Manifest:
    """Rewrite the bundle whole; the new manifest."""
    kept = {one.file: bundle.path_of(one) for one in bundle.manifest.documents}
    training = bundle.manifest.training
    with rewriting(bundle) as writer:
        writer.update(
            threshold=threshold,
            training=replace(training, details={**training.details, "threshold_rule": rule}),
        )
        _measure_again(writer, json.loads(kept[METRICS].read_bytes()))
        teacher = TeacherAnswers.from_json(kept[TEACHER].read_bytes()) if TEACHER in kept else None
        _compare_again(writer, json.loads(kept[PARITY].read_bytes()), teacher)
        return writer.manifest


def _measure_again(writer: BundleWriter, known: dict[str, Any]) -> None:
    manifest, test = writer.manifest, known["test"]
    truth = np.array([one["label"] for one in test], np.intp)
    probabilities = np.array([one["probabilities"] for one in test], np.float32)
    metrics = measure(truth, probabilities, manifest.positive, manifest.threshold)
    writer.update(metrics=metrics)
    judged_by = (manifest.positive, manifest.threshold)
    # A bundle that ships names images by their hashes: each label's folder is then that of the record before.
    folder = {entry["label"]: entry["folder"] for entry in known["folders"]}
    files = [one["file"] if "/" in one["file"] else f"{folder[one['label']]}/{one['file']}" for one in test]
    content = json.loads(metrics_document(files, truth, probabilities, *judged_by, metrics, known["history"]))
    content["test"] = test
    writer.add_document(METRICS, json.dumps(content, indent=1) + "\n")


def _compare_again(writer: BundleWriter, known: dict[str, Any], teacher: TeacherAnswers | None) -> None:
    manifest, images = writer.manifest, known["images"]
    judges = ReferenceImages(
        tuple(one["file"] for one in images),
        tuple(one["sha256"] for one in images),
        np.array([manifest.labels.index(one["label"]) for one in images], np.intp),
        np.array([one["probabilities"] for one in images], np.float32),
        teacher,
    )
    found = {}
    for file, one in known["artefacts"].items():
        positive = np.array(one["probabilities"], np.float32)
        answer = np.stack([1 - positive, positive] if manifest.positive else [positive, 1 - positive], axis=1)
        ran = {name: one[name] for name in ("engine", "provider", "threads")}
        found[file] = _as_far(compare(answer, judges, manifest, Gate(**one["gate"]), **ran), one)
    refused = [f"{file}: {reason}" for file, one in found.items() if one.verdict == "not met" for reason in one.reasons]
    if refused:
        raise SystemExit(f"at this threshold the gate refuses {'; '.join(refused)}")
    facts = {name: known[name] for name in ("reference", "split_fingerprint")}
    content = document(judges, manifest, {file: one.to_dict() for file, one in found.items()}, facts)
    writer.add_document(PARITY, to_json(content))
    if any(one.file == PAGE for one in manifest.documents):
        writer.add_document(PAGE, page(content, {one.file: one.size_bytes for one in manifest.artefacts}))
    writer.update(
        artefacts=tuple(
            replace(one, parity=found[one.file].summary()) if one.file in found else one for one in manifest.artefacts
        )
    )


def _as_far(compared: Comparison, known: dict[str, Any]) -> Comparison:
    """With the distances as they were measured: the other label's probability was recorded for none but Keras."""
    distances = ("max_difference", "mean_difference", "p99_difference", "max_logit_difference")
    teacher = compared.teacher and replace(compared.teacher, mean_difference=known["teacher"]["mean_difference"])
    return replace(compared, **{name: known[name] for name in distances}, teacher=teacher)


def main() -> None:
    """Read the threshold, rewrite the bundle, say what became of its figures."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("bundle", type=Path)
    options.add_argument("crossval", type=Path)
    chosen = options.parse_args()
    bundle = Bundle.open(chosen.bundle)
    if len(bundle.manifest.labels) != 2:
        raise SystemExit(f"{chosen.bundle}: {len(bundle.manifest.labels)} labels; parity.json records answers of two")
    found = threshold_for(bundle.manifest, json.loads(chosen.crossval.read_bytes()))
    manifest = set_threshold(bundle, found["value"], found["rule"])
    was = bundle.manifest
    print(f"{chosen.bundle}: threshold {was.threshold} -> {manifest.threshold}")
    for name, metric in manifest.metrics.items():
        print(f"{name:<18} {was.metrics[name].value:.3f} -> {metric.value:.3f}  [{metric.low:.3f}, {metric.high:.3f}]")


if __name__ == "__main__":
    main()
