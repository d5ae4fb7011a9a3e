"""Recalibrate a bundle for the labelled scans of one site: a new bundle with a temperature and a threshold of its own.

The artifacts stay as they are. The manifest of the new bundle says how their answers are changed, so that one
recalibration holds for every engine and format. It is not covered by the signature of the original bundle.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from mri_edge.authoring.recalibration import RECALIBRATION, recalibrated_scans
from mri_edge.authoring.writer import check_outside, check_target, rewrite_bundle
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import RECALIBRATED_VERSION, Manifest, Recalibration
from mri_edge.bundles.split import Split, short
from mri_edge.errors import DataError, UsageError
from mri_edge.inference.classifier import Classifier
from mri_edge.inference.prediction import NOTICE
from mri_edge.inference.selection import RunOptions
from mri_edge.storage.atomic import fingerprint
from mri_edge.train.data.classified import Track, classify_scans
from mri_edge.train.data.folder import Scan, distinct_scans, find_scans
from mri_edge.train.data.grouping import GroupRule, parse_groups, read_patients
from mri_edge.train.data.labels import Labels
from mri_edge.train.evaluation.evaluate import count_roles
from mri_edge.train.evaluation.keras_engine import describe_run
from mri_edge.train.evaluation.recalibration import FOLDS, Answers, Goal, Recalibrated, fewest, recalibrate


@dataclass(frozen=True)
class _Chosen:
    """The scans to use, the number of scans left out by reason, and warnings."""

    scans: list[Scan]
    left_out: dict[str, int]
    warnings: list[str]


@dataclass(frozen=True)
class _Reading:
    """The scans that were read, the answers to them and the rule of their groups; those not read; and what ran."""

    scans: list[Scan]
    answers: Answers
    grouping: str
    unreadable: list[dict[str, str]]
    unlike_training: int
    ran: dict[str, Any]


def recalibrate_bundle(
    bundle: Bundle,
    data: Path,
    out: Path,
    *,
    sensitivity: float,
    prevalence: float | None = None,
    groups: str | Path | None = None,
    labels: str | None = None,
    run: RunOptions | None = None,
    overwrite: bool = False,
    track: Track = lambda results, label, total: results,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Write the recalibrated bundle to ``out``, and return a record in plain types: what the command prints.

    Parameters
    ----------
    data
        Folder of class folders, as ``find_scans`` reads it.
    sensitivity
        Least sensitivity on the scans that choose the threshold, in (0, 1).
    prevalence
        Proportion of positives where the bundle will be used, in (0, 1); None weights each label equally.
    groups
        Which scans count as one, as for ``data.grouping.parse_groups``; None means near-duplicates.
    labels
        Which label of the bundle each folder has, as ``rule`` of ``match_labels``.
    run
        How to run the artifact that is measured.
    track
        Wraps the results while they come, to show how far they are: results, label, number.
    say
        Called with the labels and their folders, and with the groups if ``groups`` was given.

    Raises
    ------
    DataError
        The folders do not match the labels, all scans are known from training, none can be read, or too few.
    GateError
        The answers cannot be distinguished from chance.
    UsageError
        ``out`` or ``groups`` cannot be used, or a prevalence was given for more than two labels.
    BundleError, EngineError, OutputError
        The artifact cannot be run, or the new bundle cannot be written.
    """
    check_target(out, overwrite=overwrite)
    check_outside(out, bundle.folder, data)
    manifest = bundle.manifest
    if len(manifest.labels) > 2 and prevalence is not None:
        raise UsageError("a prevalence needs a model of two labels", "Leave out --prevalence")
    rule = GroupRule() if groups is None else parse_groups(groups)
    chosen = _choose_scans(bundle, data, sensitivity, labels, say)
    patients = read_patients(rule.patients, chosen.scans) if rule.patients else None
    reading = _read(bundle, chosen.scans, rule, patients, run or RunOptions(), track)
    if groups is not None:
        say(f"groups: {reading.grouping}; {len(reading.scans)} scans in {reading.answers.group.max() + 1} groups")
    goal = Goal(manifest.positive or 0, sensitivity, prevalence)
    before = manifest.recalibration.original_threshold if manifest.recalibration else manifest.threshold
    result = recalibrate(reading.answers, manifest.labels, goal, before)
    entry = _entry(manifest, reading, goal, result, before)
    warnings = [*chosen.warnings, *_warnings(bundle, reading), *result.warnings]
    figures = {
        "folds": [asdict(fold) for fold in result.folds],
        "before": {name: asdict(metric) for name, metric in result.before.items()},
        "expected": {name: asdict(metric) for name, metric in result.expected.items()},
        "log_loss": {"before": result.log_loss_before, "expected": result.log_loss},
    }
    with rewrite_bundle(bundle, out) as writer:
        # The score of heatmaps is about the lesions that the model called at the old threshold.
        writer.update(
            threshold=result.fit.threshold,
            recalibration=entry,
            heatmaps=None,
            schema_version=max(RECALIBRATED_VERSION, manifest.schema_version),
        )
        # Hashes and no names: the document is passed on with the bundle, and evaluation leaves these scans out.
        hashes = sorted(short(scan.sha256) for scan in reading.scans)
        writer.add_document(RECALIBRATION, json.dumps({**figures, "scans": hashes}, indent=1) + "\n")
        new = writer.manifest
    return {
        "bundle": str(out),
        "model": new.title,
        "original": manifest.title,
        **reading.ran,
        "labels": list(manifest.labels),
        "positive": manifest.positive,
        "temperature": entry.temperature,
        "log_odds_offset": entry.log_odds_offset,
        "prevalence": prevalence,
        "target_sensitivity": sensitivity if len(manifest.labels) == 2 else None,
        "threshold": new.threshold,
        "original_threshold": before,
        "threshold_rule": entry.threshold_rule,
        "data": {
            "folder": str(data),
            "fingerprint": entry.fingerprint,
            "images": len(reading.scans),
            "by_label": list(entry.scans.values()),
            "independent_by_label": list(entry.independent_scans.values()),
            "grouping": reading.grouping,
            "left_out": chosen.left_out,
        },
        **figures,
        "warnings": warnings,
        "unreadable": reading.unreadable,
        "signed": False,
        "created": entry.created,
        "notice": NOTICE,
    }


def _choose_scans(
    bundle: Bundle, data: Path, sensitivity: float, labels: str | None, say: Callable[[str], None]
) -> _Chosen:
    """List the scans that may recalibrate: no image that training knows, and of copies one.

    Raises DataError if a label has no scan, or one file has two labels.
    """
    manifest = bundle.manifest
    trained = Labels(manifest.labels, manifest.positive, manifest.training.classes)
    scans, found = find_scans(data, rule=labels, trained=trained)
    say(found.describe())
    split = Split.of_bundle(bundle)
    roles = {short(image.sha256): image.role for image in split.images} if split else {}
    known = {scan.file: role for scan in scans if (role := roles.get(short(scan.sha256)))}
    others = [scan for scan in scans if scan.file not in known]
    kept, contradictory = distinct_scans(others)
    for first, second in contradictory:
        raise DataError(f"{first.file} and {second.file} are the same file with two labels", "Remove one of them")
    left_out = Counter([*known.values(), *["copy"] * (len(others) - len(kept))])
    if not kept:
        raise DataError(
            f"all {len(scans)} images are known from the bundle's training ({count_roles(left_out)})",
            "Recalibrate with scans of your own",
        )
    for index, label in enumerate(manifest.labels):
        if all(scan.label != index for scan in kept):
            raise DataError(
                f"{data}: no scan of {label!r} that training does not know, and every label of the bundle is needed",
                f"At least {max(fewest(sensitivity))} scans of each label are a beginning",
            )
    warnings = [_known(left_out, split)] if left_out or split is None else []
    return _Chosen(kept, dict(left_out), warnings)


def _known(left_out: Counter[str], split: Split | None) -> str:
    if split is None:
        return "The bundle has no split record: whether these scans were in its training is not known."
    return f"Left out: {count_roles(left_out)} (known from training, or copies of another scan)."


def _read(
    bundle: Bundle,
    scans: Sequence[Scan],
    rule: GroupRule,
    patients: Sequence[str] | None,
    run: RunOptions,
    track: Track,
) -> _Reading:
    """Classify the scans without a recalibration, and group them."""
    raw = replace(bundle, manifest=replace(bundle.manifest, recalibration=None))
    with Classifier.load_with(run, raw) as classifier:
        found = classify_scans(classifier, scans, track, "recalibrate", rule=rule, patients=patients)
        ran = describe_run(classifier)
    assert found.grouping is not None  # noqa: S101 (for the type checker)
    label = np.array([scan.label for scan in found.scans], np.intp)
    answers = Answers(found.probabilities, label, found.grouping.group)
    return _Reading(found.scans, answers, found.grouping.text, found.unreadable, found.unlike_training, ran)


def _entry(
    manifest: Manifest, reading: _Reading, goal: Goal, result: Recalibrated, before: float | None
) -> Recalibration:
    counts = [int((reading.answers.label == index).sum()) for index in range(len(manifest.labels))]
    if result.fit.threshold is None:
        rule = "none: the likeliest label of more than two"
    else:
        rule = (
            f"best Youden index among those of at least {goal.sensitivity:g} sensitivity, on {sum(counts)} scans of "
            f"the site where it is used; {FOLDS} folds judge it"
        )
    return Recalibration(
        temperature=result.fit.temperature,
        log_odds_offset=goal.log_odds_offset,
        prevalence=goal.prevalence,
        original_threshold=before,
        threshold_rule=rule,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        artifact=reading.ran["artefact"],
        engine=reading.ran["engine"],
        provider=reading.ran["provider"],
        scans=dict(zip(manifest.labels, counts, strict=True)),
        independent_scans=dict(zip(manifest.labels, result.independent, strict=True)),
        fingerprint=fingerprint(sorted(f"{scan.sha256}\0{scan.label}" for scan in reading.scans)),
        metrics=result.expected,
    )


def _warnings(bundle: Bundle, reading: _Reading) -> list[str]:
    warnings = []
    if reading.unlike_training:
        warnings.append(f"{reading.unlike_training} of {len(reading.scans)} scans are unlike the training images.")
    others = [entry.file for entry in bundle.manifest.artifacts if entry.file != reading.ran["artefact"]]
    if others:
        warnings.append(
            f"The figures are those of {reading.ran['artefact']}; other artifacts of the bundle were not measured: "
            f"{', '.join(others)}."
        )
    earlier = recalibrated_scans(bundle)
    if known := sum(short(scan.sha256) in earlier for scan in reading.scans):
        warnings.append(
            f"{known} of the scans recalibrated this bundle before; the new recalibration replaces that one."
        )
    return warnings
