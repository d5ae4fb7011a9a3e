"""Evaluate the heatmaps of a model on lesions that are drawn at known places in healthy scans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mri_edge.authoring.provenance import current_provenance
from mri_edge.authoring.recalibration import recalibrated_scans
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.split import Split, short
from mri_edge.errors import DataError, InputError
from mri_edge.inference.classifier import CONTRIBUTIONS, Classifier
from mri_edge.inference.prediction import HOT_SPOT, NOTICE
from mri_edge.inference.selection import RunOptions
from mri_edge.storage.atomic import fingerprint
from mri_edge.train.data.folder import Scan
from mri_edge.train.data.healthy import find_healthy, healthy_labels

from .drawn_lesions import LOOKS
from .evaluate import Role, choose_scans
from .heatmap_cases import CalledHealthy, Explained, Track, choose_rows, classify_healthy, explain_lesions
from .heatmap_score import TOLERANCE, Case, by_look, choose_hot_spot, figures, judge
from .keras_engine import describe_run, open_classifier
from .removal import FRACTIONS

SCANS = 120  # scans that get lesions by default: 240 lesions, for intervals of 0.06 to each side


@dataclass(frozen=True)
class HeatmapEvaluation:
    """The record behind ``--json`` and the reports, in plain types, and the maps that the page shows."""

    record: dict[str, Any]
    cases: list[Case]


def evaluate_heatmaps(
    bundle: Bundle,
    data: Path,
    *,
    run: RunOptions | None = None,
    role: Role | None = None,
    labels: str | None = None,
    limit: int = SCANS,
    track: Track = lambda items, label, total: items,
    say: Callable[[str], None] = lambda text: None,
) -> HeatmapEvaluation:
    """Score the heatmaps of an artifact on lesions drawn in the healthy scans of ``data``.

    Parameters
    ----------
    data, labels
        As ``data`` and ``rule`` of ``find_healthy``.
    run
        How to run the artifact, as for ``open_classifier``.
    role
        None leaves out the scans that training used, compared by SHA-256. ``"test"`` takes the healthy test images of
        the bundle's split record, and ``"all"`` every scan.
    limit
        Number of scans that get two lesions each. They are chosen by their SHA-256, from as many groups as possible.
        Fewer scans get more lesions, up to one of each look.
    track
        Wraps an iterable to show progress; called with the items, a label and their number.
    say
        Called with one line about the folder.

    Raises
    ------
    DataError
        There are no healthy scans, none may be used, none can be read, the model calls none of them healthy, or no
        lesion can be drawn.
    BundleError, EngineError, UsageError
        The artifact cannot be run as asked, or no label of the model means a healthy scan.
    """
    manifest = bundle.manifest
    healthy = healthy_labels(manifest)
    names = [manifest.labels[index] for index in sorted(healthy)]
    found = find_healthy(data, manifest, labels)
    say(found.text)
    recorded = Split.of_bundle(bundle)
    split = _split_to_compare(recorded, role, healthy)
    chosen = choose_scans(found.scans, split, role, recalibrated_scans(bundle))
    distinct = list({scan.sha256: scan for scan in chosen.scans}.values())
    with open_classifier(bundle, run or RunOptions()) as classifier:
        answered = classify_healthy(classifier, distinct, names, track)
        if not answered.scans:
            raise _no_healthy_answer(data, distinct, answered, names)
        rows = choose_rows(answered.scans, answered.grouping.group, limit)
        groups = [int(answered.grouping.group[row]) for row in rows]
        # With fewer scans than the limit each gets more lesions, up to one of each look, for as many in all.
        lesions = min(max(2, 2 * limit // len(rows)), len(LOOKS))
        chosen_scans = [answered.scans[row] for row in rows]
        hot_spot = _choose_hot_spot(classifier, found.scans, recorded, names, track)
        explained = explain_lesions(classifier, chosen_scans, groups, names, lesions, track)
        ran = {**describe_run(classifier), "method": _describe_method(classifier)}
        sha256 = classifier.artifact.sha256
    cases = explained.cases
    if not cases:
        raise DataError(
            f"{data}: no lesion was drawn and explained in {len(rows)} scans; {explained.without_head} show no head",
            "Name slices of the brain, in which the head fills at least a fifth of the picture",
        )
    left_out = Counter(chosen.left_out) + Counter(
        {
            "copy": len(chosen.scans) - len(distinct),
            **{f"called {label}": count for label, count in answered.called.items()},
            "beyond the limit of scans": len(answered.scans) - len(rows),
            "without a head": explained.without_head,
        }
    )
    scored = figures(cases, explained.healthy, HOT_SPOT if hot_spot is None else hot_spot)
    used = {case.scan.sha256 for case in cases}
    record = {
        "model": manifest.title,
        "recipe": manifest.training.recipe,
        **ran,
        "sha256": sha256,
        "labels": list(manifest.labels),
        "positive": manifest.positive,
        "threshold": manifest.threshold,
        "data": {
            "folder": str(data),
            "found": found.text,
            "fingerprint": fingerprint(sorted(used)),
            "scans": len(used),
            "groups": len({case.group for case in cases}),
            "grouping": answered.grouping.text,
            "what": chosen.what,
            "left_out": dict(left_out),
        },
        "lesions": len(cases),
        "called": sum(case.called for case in cases),
        "hot_spot": hot_spot,
        "tolerance": TOLERANCE,
        "warnings": [*chosen.warnings, *_warnings(cases)],
        "metrics": {name: asdict(metric) for name, metric in scored.items()},
        "by_look": {
            look: {name: asdict(metric) for name, metric in of_look.items()} for look, of_look in by_look(cases).items()
        },
        "curves": _mean_curves(cases),
        "cases": [_plain(case) for case in cases],
        "unreadable": _unreadable(answered, explained),
        "creation": asdict(current_provenance()),
        "notice": NOTICE,
    }
    return HeatmapEvaluation(record, cases)


def _choose_hot_spot(
    classifier: Classifier, scans: Sequence[Scan], split: Split | None, healthy: Sequence[str], track: Track
) -> float | None:
    """Choose the limit of a hot spot on healthy validation scans, without lesions.

    The role ``"all"`` also scores these scans. The other roles do not.
    """
    validation = {short(image.sha256) for image in split.of("validation")} if split else set()
    chosen = list({scan.sha256: scan for scan in scans if short(scan.sha256) in validation}.values())
    answered = classify_healthy(classifier, chosen, healthy, track)
    rows = choose_rows(answered.scans, answered.grouping.group, SCANS)
    chosen, groups = [answered.scans[row] for row in rows], [int(answered.grouping.group[row]) for row in rows]
    return choose_hot_spot(explain_lesions(classifier, chosen, groups, healthy, 0, track).healthy)


def _describe_method(classifier: Classifier) -> str:
    """Say how the heatmaps are computed: it depends on the outputs that the artifact has in this engine."""
    if any(output.name == CONTRIBUTIONS for output in classifier.engine.outputs):
        return "covering, averaged with the contributions that the graph gives (HiResCAM)"
    return "covering"


def _split_to_compare(split: Split | None, role: Role | None, healthy: Collection[int]) -> Split | None:
    """Return the part of the split record that says which healthy scans may be used.

    Without a role, the test images may be used as any image that training did not use, so the record does not have to
    name them, nor the copies of them that it excluded from training. With ``"test"`` only the healthy ones are needed.
    """
    if split is None:
        return None
    wanted = healthy if role == "test" else ()
    tested = {image.sha256 for image in split.of("test")}
    return Split(
        tuple(
            image
            for image in split.images
            if (image.role != "test" or image.label in wanted)
            and not (image.role == "excluded" and image.sha256 in tested)
        )
    )


def _no_healthy_answer(data: Path, scans: Sequence[Scan], answered: CalledHealthy, healthy: Sequence[str]) -> DataError:
    if len(answered.failures) == len(scans):
        return DataError(f"{data}: none of {len(scans)} scans can be read, {answered.failures[0][1].problem}")
    answers = ", ".join(f"{label} {count}" for label, count in sorted(answered.called.items()))
    return DataError(
        f"{data}: the model calls none of {len(scans)} scans {' or '.join(map(repr, healthy))} (answers: {answers}), "
        "and lesions are drawn only in those",
        "Name a folder of healthy scans",
    )


def _warnings(cases: Sequence[Case]) -> list[str]:
    if not any(case.called for case in cases):
        return [
            f"The model called none of the {len(cases)} drawn lesions, so there are no figures of called lesions, and "
            "no deletion or insertion."
        ]
    return []


def _unreadable(answered: CalledHealthy, explained: Explained) -> list[dict[str, str]]:
    """List the scans that cannot be read, each once."""
    failures: dict[str, InputError] = {}
    for scan, error in [*answered.failures, *explained.failures]:
        failures.setdefault(scan.file, error)
    return [{"file": file, "error": error.problem, "hint": error.hint} for file, error in failures.items()]


def _mean_curves(cases: Sequence[Case]) -> dict[str, Any]:
    """Return the mean curves of the called lesions, by kind and map; empty if there are none."""
    called = [case.curves for case in cases if case.curves]
    if not called:
        return {}
    return {
        "fractions": list(FRACTIONS),
        **{
            kind: {
                name: np.mean([getattr(curves[name], kind) for curves in called], axis=0).tolist() for name in called[0]
            }
            for kind in ("deletion", "insertion")
        },
    }


def _plain(case: Case) -> dict[str, Any]:
    """Return what the record says about one lesion; positions are proportions of height and width."""
    judged = judge(case.heatmap, case.lesion, case.head)
    height, width = case.lesion.shape
    rows, columns = np.nonzero(case.lesion)

    def position(row: float, column: float) -> list[float]:
        return [round((row + 0.5) / height, 4), round((column + 0.5) / width, 4)]

    return {
        "file": case.scan.file,
        "sha256": case.scan.sha256,
        "lesion": case.number,
        "look": case.look,
        "group": case.group,
        "called": case.called,
        "probability": case.probability,
        "center": position(float(rows.mean()), float(columns.mean())),
        "peak": position(*judged.peak) if judged.peak else None,
        "highest": float(case.heatmap.max()),
        "hit": judged.hit,
        "strict_hit": judged.strict_hit,
        "in_air": judged.in_air,
        "mass_in_lesion": judged.mass,
    }
