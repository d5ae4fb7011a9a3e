"""Evaluate an artifact of a bundle on labelled scans: choose which scans may be scored, and compute all metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix

from mri_edge.authoring.card import METRICS
from mri_edge.authoring.provenance import current_provenance
from mri_edge.authoring.recalibration import recalibrated_scans
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.decode import parse
from mri_edge.bundles.split import Split, short
from mri_edge.errors import DataError
from mri_edge.inference.prediction import NOTICE, decide
from mri_edge.inference.selection import RunOptions
from mri_edge.storage.atomic import fingerprint
from mri_edge.train.data.classified import Track, classify_scans
from mri_edge.train.data.folder import Scan, distinct_scans, find_scans
from mri_edge.train.data.grouping import Grouping, parse_groups, read_patients
from mri_edge.train.data.labels import Labels

from .keras_engine import describe_run, open_classifier
from .metrics import by_folder, by_label, measure, reliability, roc_of

Role = Literal["test", "all"]
WORST = 20  # mistakes that a report lists


@dataclass(frozen=True)
class Chosen:
    """The scans to score, a description of them, the number of other scans by role, and warnings.

    ``recorded`` is True for all test images in the order of the split record.
    """

    scans: list[Scan]
    what: str
    left_out: dict[str, int]
    warnings: list[str]
    recorded: bool = False


def evaluate(
    bundle: Bundle,
    data: Path,
    *,
    run: RunOptions | None = None,
    role: Role | None = None,
    labels: str | None = None,
    groups: str | Path | None = None,
    track: Track = lambda results, label, total: results,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Score an artifact on the scans in ``data``; return the record behind ``--json`` and the reports, in plain types.

    Parameters
    ----------
    run
        How to run the artifact, as for ``open_classifier``; None leaves every choice to it.
    role
        ``"test"`` scores the test images of the bundle's split record, ``"all"`` every image. ``None`` scores the
        test images if ``data`` contains all of them, otherwise every image that the record does not list.
    labels
        As ``rule`` of ``data.labels.match_labels``: None uses the folders of the model's training.
    groups
        Which scans count as one in the intervals, as for ``data.grouping.parse_groups``. None uses the groups that the
        bundle records for its test images, and takes other images as independent.
    track
        Wraps the iterator of results to show progress; called with the results, a label and their number.
    say
        Called with the labels and their folders, and with the groups if there are any.

    Raises
    ------
    DataError
        No image may be scored or can be read, a folder matches no label of the model, every file has two
        labels, or ``groups`` lacks an image.
    BundleError, EngineError, UsageError
        The artifact cannot be run as asked, or there is no such rule of ``groups``.
    """
    manifest = bundle.manifest
    rule = None if groups is None else parse_groups(groups)
    trained = Labels(manifest.labels, manifest.positive, manifest.training.classes)
    scans, matched = find_scans(data, rule=labels, trained=trained)
    say(matched.describe())
    recalibrated = recalibrated_scans(bundle)
    chosen = choose_scans(scans, Split.of_bundle(bundle), role, recalibrated)
    if known := sum(short(scan.sha256) in recalibrated for scan in chosen.scans):
        chosen.warnings.append(f"{known} of these images chose the temperature and threshold of this bundle.")
    patients = read_patients(rule.patients, chosen.scans) if rule and rule.patients else None
    with open_classifier(bundle, run or RunOptions()) as classifier:
        found = classify_scans(classifier, chosen.scans, track, "evaluate", rule=rule, patients=patients)
        ran = describe_run(classifier)
    grouping = found.grouping
    if rule is None and chosen.recorded and (recorded := _recorded_groups(bundle, len(chosen.scans))):
        grouping = replace(recorded, group=recorded.group[found.rows])
    if grouping:
        say(f"groups: {grouping.text}; {len(found.scans)} images in {len(np.unique(grouping.group))} groups")
    return {
        "model": manifest.title,
        "recipe": manifest.training.recipe,
        **ran,
        "labels": list(manifest.labels),
        "positive": manifest.positive,
        "threshold": manifest.threshold,
        "data": {
            "folder": str(data),
            "label_folders": matched.folders,
            "fingerprint": fingerprint(f"{scan.file}\0{scan.sha256}\0{scan.label}" for scan in found.scans),
            "images": len(found.scans),
            "by_label": [sum(scan.label == index for scan in found.scans) for index in range(len(manifest.labels))],
            "what": chosen.what,
            "left_out": chosen.left_out,
            "grouping": grouping.text if grouping else None,
        },
        "warnings": chosen.warnings,
        **score(
            found.scans,
            found.probabilities,
            manifest.positive,
            manifest.threshold,
            grouping.group if grouping else None,
            names=manifest.labels,
        ),
        "unreadable": found.unreadable,
        "creation": asdict(current_provenance()),
        "notice": NOTICE,
    }


def score(
    scans: Sequence[Scan],
    probabilities: NDArray[np.float32],
    positive: int | None,
    threshold: float | None,
    group: NDArray[np.intp] | None = None,
    *,
    names: Sequence[str],
) -> dict[str, Any]:
    """Compute all metrics of the record from the scans and their probabilities float32 (N, classes), in plain types.

    ``group`` (N,) is as ``metrics.measure`` takes it. With more than two labels the record also has ``by_label`` and
    ``roc_by_label``, each label against all others. Without a positive label, ``roc`` is None and ``reliability`` is
    that of the called labels.
    """
    truth = np.array([scan.label for scan in scans])
    called = decide(probabilities, positive, threshold)
    predictions = [
        {"file": scan.file, "sha256": scan.sha256, "label": scan.label, "called": int(answer), "probabilities": row}
        for scan, answer, row in zip(scans, called, probabilities.tolist(), strict=True)
    ]
    wrong = [prediction for prediction in predictions if prediction["called"] != prediction["label"]]
    wrong.sort(key=lambda prediction: prediction["probabilities"][prediction["label"]])
    metrics = measure(truth, probabilities, positive, threshold, group)
    if positive is None:
        calibration = reliability(called == truth, probabilities[np.arange(len(truth)), called], group)
    else:
        calibration = reliability(truth == positive, probabilities[:, positive], group)
    return {
        "metrics": {name: asdict(metric) for name, metric in metrics.items()},
        "confusion_matrix": confusion_matrix(truth, called, labels=range(len(names))).tolist(),  # rows: truth
        "folders": by_folder([scan.folder for scan in scans], truth, called == truth, group),
        "roc": roc_of(truth, probabilities, positive),
        **(_each_label(truth, probabilities, called, names, group) if len(names) > 2 else {}),
        "reliability": calibration,
        "mistakes": len(wrong),
        "worst": wrong[:WORST],
        "predictions": predictions,
    }


def _each_label(
    truth: NDArray[np.intp],
    probabilities: NDArray[np.float32],
    called: NDArray[np.intp],
    names: Sequence[str],
    group: NDArray[np.intp] | None,
) -> dict[str, Any]:
    return {
        "by_label": by_label(truth, probabilities, called, names, group),
        "roc_by_label": {name: roc_of(truth, probabilities, index) for index, name in enumerate(names)},
    }


def groups_of(test: Sequence[dict[str, Any]]) -> NDArray[np.intp] | None:
    """Return the groups of the images ``test`` of ``metrics.json``, int (N,), or None if it records none."""
    groups = [image.get("group") for image in test]
    return None if None in groups else np.array(groups, np.intp)


def _recorded_groups(bundle: Bundle, images: int) -> Grouping | None:
    """Return the groups with which training measured the test images, in the order of the split record, if any."""
    document = bundle.manifest.document(METRICS)
    if document is None:
        return None
    try:
        group = groups_of(parse(bundle.read(document), METRICS)["test"])
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        return None  # a document that training did not write
    if group is None or group.shape != (images,):
        return None
    return Grouping(group, str(bundle.manifest.training.details.get("grouping", "as in training")))


def choose_scans(
    scans: Sequence[Scan], split: Split | None, role: Role | None, recalibrated: Container[str] = ()
) -> Chosen:
    """Choose the scans that may be scored, by comparing SHA-256 hashes with the split record.

    Of several copies one is chosen, but the test images of the record are complete, so that their figures are those of
    the bundle. ``recalibrated`` has the ``short`` SHA-256 of scans that chose the threshold: they are scored only with
    a ``role``.

    Raises
    ------
    DataError
        No scan may be scored, ``role`` is ``"test"`` and test images are missing, or every file has two labels.
    """
    others = [scan for scan in scans if role is not None or short(scan.sha256) not in recalibrated]
    if len(others) < len(scans):
        return _without_recalibration(scans, others, split)
    if split is None:
        if role == "test":
            raise DataError("the bundle has no split record: its test images are not known", "Omit --role")
        unknown = ["The bundle has no split record: these images may have been used in its training."]
        return _choose_distinct(scans, "all images", {}, unknown)
    # If copies of an image have several roles, the role closest to training wins.
    trained: dict[str, str] = {
        short(image.sha256): image.role for kind in ("excluded", "validation", "train") for image in split.of(kind)
    }
    test = _test_scans(scans, split)
    if role == "all":
        return _everything(scans, trained)
    if role == "test" or test:
        if not test:
            expected = len(split.of("test"))
            raise DataError(
                f"not all of the {expected} test images of the bundle were found" if expected else "no test images",
                "Point --data to the folder that training used",
            )
        return _test_only(scans, test, split, trained)
    known = [trained.get(short(scan.sha256)) for scan in scans]
    kept = [scan for scan, its_role in zip(scans, known, strict=True) if its_role is None]
    left_out = Counter(its_role for its_role in known if its_role is not None)
    if not kept:
        raise DataError(
            f"all {len(scans)} images are known from the bundle's training ({count_roles(left_out)}): "
            "none may be scored",
            "Use other images, or --role all to see how well the model remembers these",
        )
    warnings = []
    if left_out:
        warnings.append(f"{left_out.total()} images are known from the bundle's training and left out.")
    return _choose_distinct(kept, "images that were not in training (compared by SHA-256)", dict(left_out), warnings)


def _choose_distinct(scans: Sequence[Scan], what: str, left_out: dict[str, int], warnings: list[str]) -> Chosen:
    """Choose one of several copies, because copies are no independent images, and none if their labels differ."""
    kept, contradictory = distinct_scans(scans)
    if copies := len(scans) - len(kept):
        left_out = left_out | {"copy": copies}
        warnings = [*warnings, f"{copies} images are byte for byte copies of others and left out."]
    if contradictory:
        first, second = contradictory[0]
        files = f"{first.file} and {second.file} are the same file with two labels"
        more = f"; {len(contradictory) - 1} more such files" if len(contradictory) > 1 else ""
        if not kept:
            raise DataError(f"no image has one label: {files}{more}", "Remove the wrong copy of each")
        warnings = [*warnings, f"Both are left out: {files}{more}."]
    return Chosen(kept, what, left_out, warnings)


def _without_recalibration(scans: Sequence[Scan], others: Sequence[Scan], split: Split | None) -> Chosen:
    """Leave out the scans that the bundle was recalibrated on: their figures would look better than they are."""
    if not others:
        raise DataError(
            f"all {len(scans)} images chose the temperature and threshold of this bundle: none may be scored",
            "Its card has the figures to expect on them; name other images, or use --role all",
        )
    chosen, left_out = choose_scans(others, split, None), len(scans) - len(others)
    warning = f"{left_out} images chose the temperature and threshold of this bundle and are left out."
    return replace(chosen, left_out=chosen.left_out | {"recalibration": left_out}, warnings=[*chosen.warnings, warning])


def _test_scans(scans: Sequence[Scan], split: Split) -> list[Scan]:
    """Return the test images among ``scans`` in the record's order, or [] unless all of them are there.

    They may have other names. Of several copies, one with the recorded name is preferred.
    """
    by_content: dict[str, list[Scan]] = {}
    for scan in scans:
        by_content.setdefault(short(scan.sha256), []).append(scan)
    found = []
    for image in split.of("test"):
        copies = by_content.get(short(image.sha256))
        if not copies:
            return []
        same_name = [scan for scan in copies if scan.file == image.file]
        found.append((same_name or copies)[0])
    return found


def _test_only(scans: Sequence[Scan], test: list[Scan], split: Split, trained: dict[str, str]) -> Chosen:
    scored = {scan.file for scan in test}
    known = {short(scan.sha256): "test" for scan in test} | trained
    left_out = Counter(known.get(short(scan.sha256), "unknown") for scan in scans if scan.file not in scored)
    warnings = []
    if leaked := sum(trained.get(short(scan.sha256)) in ("train", "validation") for scan in test):
        warnings.append(f"{leaked} of the test images are byte for byte among the training images as well.")
    if strangers := left_out["unknown"]:
        warnings.append(
            f"{strangers} images that are not in the bundle's split record are not scored: "
            "evaluate their folder alone to score them."
        )
    if relabelled := sum(scan.label != image.label for scan, image in zip(test, split.of("test"), strict=True)):
        warnings.append(f"{relabelled} images are in the folder of another label than in the bundle's record.")
    return Chosen(test, "test images of the bundle's split record", dict(left_out), warnings, recorded=True)


def _everything(scans: Sequence[Scan], trained: dict[str, str]) -> Chosen:
    contents = {short(scan.sha256) for scan in scans}
    seen = Counter(role for content in contents if (role := trained.get(content)) in ("train", "validation"))
    warnings = []
    if seen:
        warnings.append(
            f"{seen.total()} OF THESE {len(contents)} IMAGES WERE IN TRAINING ({count_roles(seen)}): the figures say "
            "how well the model remembers, not how good it is."
        )
    return _choose_distinct(scans, "all images, trained on or not", {}, warnings)


def count_roles(roles: Counter[str]) -> str:
    """Return the number of images of each role as text: ``"train 12, validation 3"``."""
    return ", ".join(f"{name} {count}" for name, count in sorted(roles.items()))
