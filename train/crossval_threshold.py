"""Put the out-of-fold threshold of a cross-validation into a bundle, and compute the figures that depend on it again.

The model does not run: its answers for the test images are in ``metrics.json``. A threshold alone needs no
recalibration in the manifest, so every release reads the new bundle.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mri_edge.authoring.card import METRICS
from mri_edge.authoring.writer import BundleWriter, check_outside, check_target, rewrite_bundle
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.decode import parse
from mri_edge.bundles.manifest import Training
from mri_edge.bundles.split import Split, short
from mri_edge.errors import BundleError, DataError, ManifestError
from mri_edge.inference.prediction import NOTICE

from .bundle import metrics_document
from .evaluation.evaluate import groups_of
from .evaluation.metrics import measure

_REPORT = "report/"
_LIMIT = 1 << 30  # bytes of a record; one of 4,000 images has some 10 MB


@dataclass(frozen=True)
class OutOfFold:
    """A threshold chosen on the answers of a cross-validation, how it was chosen, and warnings."""

    value: float
    rule: str
    warnings: tuple[str, ...]


def read_threshold(path: Path, bundle: Bundle) -> OutOfFold:
    """Choose a threshold on the answers in ``crossval.json``, if the record is of the bundle's kind of model.

    If the cross-validation assumed other test images than the bundle has, the threshold is chosen without the bundle's
    test images.

    Raises
    ------
    DataError
        It cannot be read, is no complete record, has no threshold or too few independent images of a label, or is of
        another recipe or schedule, or of other labels or images.
    """
    record = _read(path)
    manifest = bundle.manifest
    expected = {"recipe": manifest.training.recipe, "labels": list(manifest.labels), "positive": manifest.positive}
    for name, wanted in expected.items():
        if record.get(name) != wanted:
            raise _of_another(path, name, record.get(name), wanted)
    try:
        _check_schedule(path, record["schedule"], manifest.training)
        _check_folds(path, record["folds_scored"], record["folds"])
        tested, warnings = _tested(path, record, bundle)
        found = _choose(record, tested, manifest.labels)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError(
            f"{path}: is no complete record of a cross-validation ({error!r})",
            "Run the cross-validation again: finished folds are kept",
        ) from error
    if found is None:
        raise DataError(
            f"{path}: has no threshold, because it has no positive label or no images of one label",
            "Cross-validate scans of both labels, with a positive one",
        )
    return OutOfFold(found["value"], found["rule"], tuple(warnings))


def _of_another(path: Path, name: str, received: object, wanted: object) -> DataError:
    return DataError(
        f"{path}: the cross-validation is of another {name.replace('_', ' ')}. Received: {received!r}, "
        f"the bundle has {wanted!r}",
        "Cross-validate the recipe and the data of this bundle",
    )


def _check_schedule(path: Path, schedule: dict[str, Any], training: Training) -> None:
    """Compare the entries that both records have: another release may know more or fewer."""
    recorded = training.details.get("plan", training.details)
    other = [name for name, value in schedule.items() if name in recorded and recorded[name] != value]
    if other:
        raise _of_another(
            path, "schedule", {name: schedule[name] for name in other}, {name: recorded[name] for name in other}
        )


def _check_folds(path: Path, scored: list[int], folds: int) -> None:
    if len(scored) < folds:
        raise DataError(
            f"{path}: the cross-validation is not finished. Received: {len(scored)} of {folds} folds",
            "Run it again without --fold: finished folds are kept",
        )


def _tested(path: Path, record: dict[str, Any], bundle: Bundle) -> tuple[list[str], list[str]]:
    """Return the SHA-256 of the bundle's test images, unless the record excludes them already, and warnings."""
    ours, theirs = bundle.manifest.training.split_fingerprint, record.get("split_fingerprint")
    if theirs == ours:
        return [], []
    split = Split.of_bundle(bundle)
    if split is None and theirs is None:
        return [], [f"{path} does not record a split: whether test images influenced the threshold is not known."]
    if split is None:
        raise _of_another(path, "split_fingerprint", theirs, ours)
    if not {short(image.sha256) for image in split.images} & set(record["images"]["sha256"]):
        raise DataError(
            f"{path}: the cross-validation is of other images than the bundle",
            "Cross-validate the recipe and the data of this bundle",
        )
    return [image.sha256 for image in split.of("test")], []


def _choose(record: dict[str, Any], tested: Sequence[str], labels: Sequence[str]) -> dict[str, Any] | None:
    """Choose the threshold on as many independent images as a recalibration needs.

    Images are counted by groups and not, as there, by the size that the groups are worth: blocks of file numbers are
    larger than patients, and near-duplicates join many of them.
    """
    from .evaluation.crossval_figures import SENSITIVITY, images_for, threshold_for
    from .evaluation.recalibration import Goal, require_enough

    found = threshold_for(record, tested)
    if found is not None:
        images = images_for(record, tested)
        groups = [np.unique(images.group[images.selectable & (images.label == row)]) for row in range(len(labels))]
        require_enough([len(group) for group in groups], labels, Goal(record["positive"], SENSITIVITY))
    return found


def set_threshold(bundle: Bundle, out: Path, found: OutOfFold, *, overwrite: bool = False) -> dict[str, Any]:
    """Write the bundle with the new threshold to ``out``, and return a record in plain types.

    ``out`` may be the bundle itself, with ``overwrite``.

    Raises
    ------
    BundleError
        The bundle is recalibrated, has more than two labels, or has no record of its answers.
    UsageError, OutputError
        ``out`` cannot be used or written.
    """
    check_target(out, overwrite=overwrite)
    check_outside(out, bundle.folder)
    old = bundle.manifest
    _check_bundle(bundle)
    warnings = list(found.warnings)
    keep = [entry.file for entry in bundle.entries()]
    if found.value != old.threshold:
        # The pages show more than the bundle records, so they cannot be made again.
        keep = [file for file in keep if not file.startswith(_REPORT)]
        if len(keep) < len(bundle.entries()):
            warnings.append(f"The pages in {_REPORT} are left out: they show figures at the threshold before.")
        if any(artifact.parity for artifact in old.artifacts):
            warnings.append(
                "The parity of the artifacts was counted at the threshold before: 'mri-edge export' counts it again."
            )
    in_place = not bundle.archive and out.resolve() == bundle.folder.resolve()
    with rewrite_bundle(bundle, None if in_place else out, keep=keep) as writer:
        details = {**old.training.details, "threshold_rule": found.rule}
        # The score of heatmaps is about the lesions that the model called at the old threshold.
        writer.update(threshold=found.value, training=replace(old.training, details=details), heatmaps=None)
        _update_metrics(writer, bundle)
        new = writer.manifest
    return {
        "bundle": str(out),
        "model": new.title,
        "original": old.title,
        "threshold": new.threshold,
        "original_threshold": old.threshold,
        "threshold_rule": found.rule,
        "metrics": {name: asdict(metric) for name, metric in new.metrics.items()},
        "metrics_before": {name: asdict(metric) for name, metric in old.metrics.items()},
        "warnings": warnings,
        "signed": False,
        "notice": NOTICE,
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            text = file.read(_LIMIT + 1)
    except OSError as error:
        raise DataError(
            f"{path}: cannot read ({error.strerror})", "Name the crossval.json of a cross-validation"
        ) from error
    if len(text) > _LIMIT:
        raise DataError(f"{path}: is larger than {_LIMIT >> 20} MiB", "Name the crossval.json of a cross-validation")
    try:
        record = parse(text, str(path))
    except ManifestError as error:
        raise DataError(error.problem, "Name the crossval.json of a cross-validation") from error
    if not isinstance(record, dict):
        raise DataError(f"{path}: is not a record of a cross-validation", "Name its crossval.json")
    return record


def _check_bundle(bundle: Bundle) -> None:
    manifest = bundle.manifest
    if len(manifest.labels) != 2:
        raise BundleError(f"{bundle.folder}: a threshold needs two labels. Received: {', '.join(manifest.labels)}")
    if manifest.recalibration:
        raise BundleError(
            f"{bundle.folder}: is recalibrated, so its threshold is on another scale",
            "Name the bundle that it was made from",
        )
    if manifest.metrics and manifest.document(METRICS) is None:
        raise BundleError(f"{bundle.folder}: has no {METRICS}, from which its figures could be computed again")


def _update_metrics(writer: BundleWriter, bundle: Bundle) -> None:
    """Compute ``metrics.json`` and the manifest's metrics again from the recorded answers to the test images."""
    document = bundle.manifest.document(METRICS)
    if document is None:
        return
    manifest = writer.manifest
    known = parse(bundle.read(document), METRICS)
    try:
        test = known["test"]
        y_true = np.array([image["label"] for image in test], np.intp)
        probabilities = np.array([image["probabilities"] for image in test], np.float32)
        # A shipped bundle names images by their hashes; the folder of each label is taken from the old record.
        folder = {entry["label"]: entry["folder"] for entry in known["folders"]}
        known_folders = len(folder) == len(known["folders"]) or all("/" in image["file"] for image in test)
        files = [
            image["file"] if "/" in image["file"] else f"{folder[image['label']]}/{image['file']}" for image in test
        ]
        history = known["history"]
        group = groups_of(test)
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"{bundle.folder}: {METRICS} is not what training writes ({error!r})", "Train the model again"
        ) from error
    metrics = measure(y_true, probabilities, manifest.positive, manifest.threshold, group)
    writer.update(metrics=metrics)
    text = metrics_document(
        files,
        y_true,
        probabilities,
        manifest.positive,
        manifest.threshold,
        metrics,
        history,
        names=manifest.labels,
        group=group,
    )
    content = json.loads(text)
    content["test"] = test
    if not known_folders:  # a label has several, and no image says in which it was
        del content["folders"]
    writer.add_document(METRICS, json.dumps(content, indent=1) + "\n")
