"""Describe a bundle's recalibration, and read the record of the scans that chose it."""

from __future__ import annotations

from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.decode import parse
from mri_edge.bundles.manifest import Manifest
from mri_edge.errors import ManifestError

from .intervals import with_interval

RECALIBRATION = "recalibration.json"
NAMES = {"auc": "AUC", "precision": "precision (PPV)", "negative_predictive_value": "negative predictive value (NPV)"}


def facts(manifest: Manifest) -> list[tuple[str, str]]:
    """Return name and value of each fact about the recalibration; empty without one."""
    done = manifest.recalibration
    if done is None:
        return []
    scans = ", ".join(
        f"{count} {label} ({done.independent_scans.get(label, 0)} independent)" for label, count in done.scans.items()
    )
    change = f"temperature {done.temperature:.4g}"
    if done.prevalence is not None:
        change += f", for a prevalence of {done.prevalence:g} (log odds {done.log_odds_offset:+.3f})"
    before = "the likeliest label" if done.original_threshold is None else f"threshold {done.original_threshold:.4g}"
    return [
        ("made", f"{done.created}, with {done.artifact} in {done.engine} ({done.provider})"),
        ("scans", scans),
        ("probabilities", f"those of the artifact with {change}"),
        ("threshold", done.threshold_rule),
        ("before", before),
        *(
            (
                f"expected {NAMES.get(name, name)}",
                f"{with_interval(metric.value, metric.low, metric.high)}, {metric.images} scans",
            )
            for name, metric in done.metrics.items()
        ),
    ]


def headline(manifest: Manifest) -> str:
    """Return one sentence: when, on how many scans, and what to expect. Raises ValueError without a recalibration."""
    done = manifest.recalibration
    if done is None:
        raise ValueError("the bundle was not recalibrated")
    figures = ", ".join(
        f"{NAMES.get(name, name)} {with_interval(metric.value, metric.low, metric.high)}"
        for name, metric in done.metrics.items()
    )
    return f"Recalibrated on {sum(done.scans.values())} scans, {done.created}. Expected on such scans: {figures}."


def recalibrated_scans(bundle: Bundle) -> frozenset[str]:
    """Return ``short`` SHA-256 of the scans that chose the temperature and threshold; empty without a recalibration.

    Raises ManifestError if the record is not one.
    """
    document = bundle.manifest.document(RECALIBRATION)
    if bundle.manifest.recalibration is None or document is None:
        return frozenset()
    record = parse(bundle.read(document), RECALIBRATION)
    scans = record.get("scans") if isinstance(record, dict) else None
    if not isinstance(scans, list) or not all(isinstance(scan, str) for scan in scans):
        raise ManifestError(f"{bundle.folder}: {RECALIBRATION} is not a record of scans", "Recalibrate again")
    return frozenset(scans)
