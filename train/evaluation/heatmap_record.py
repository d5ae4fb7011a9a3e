"""Store the score of heatmaps in the bundle that was measured."""

from __future__ import annotations

from typing import Any

from mri_edge.authoring.writer import rewrite_bundle
from mri_edge.bundles.bundle import EMBEDDED, Bundle
from mri_edge.bundles.manifest import HeatmapScore, Metric
from mri_edge.errors import BundleError


def check_recordable(bundle: Bundle) -> None:
    """Check that a score can be stored in a bundle. Call it before long work.

    Raises
    ------
    BundleError
        The bundle is packed, embedded in the package, or signed.
    """
    folder = bundle.require_folder()
    if folder.resolve().parent == EMBEDDED.resolve():
        raise BundleError(
            f"{folder.name}: is embedded in the package, which does not change",
            f"Make a copy and score that: mri-edge bundle slim {folder.name} --artifact FILE --out DIR",
        )
    if bundle.signature_bytes() is not None:
        raise BundleError(
            f"{folder}: is signed, and storing a score would remove the signature",
            "Its owner can store the score and sign again; or leave out --record",
        )


def record_score(bundle: Bundle, record: dict[str, Any]) -> None:
    """Store the figures of a record of ``evaluate_heatmaps`` in the bundle's manifest and card, atomically.

    Raises
    ------
    BundleError
        As ``check_recordable``.
    OutputError
        The bundle cannot be written.
    """
    check_recordable(bundle)
    with rewrite_bundle(bundle) as writer:
        writer.update(heatmaps=score_of(record))


def score_of(record: dict[str, Any]) -> HeatmapScore:
    """Return what the manifest says about a record of ``evaluate_heatmaps``: no file names, and no single lesion."""
    data = record["data"]
    metrics = dict(record["metrics"])
    for look, of_look in record["by_look"].items():
        metrics |= {f"{name}_{look}": metric for name, metric in of_look.items()}
    return HeatmapScore(
        created=record["creation"]["created"],
        artifact=record["artefact"],
        sha256=record["sha256"],
        engine=record["engine"],
        provider=record["provider"],
        method=record["method"],
        scans=data["scans"],
        lesions=record["lesions"],
        # Not the text of the grouping: it names folders, and a folder may have the name of a patient.
        data=f"{data['what']}, in {data['groups']} independent groups",
        fingerprint=data["fingerprint"],
        hot_spot=record["hot_spot"],
        metrics={name: Metric(**metric) for name, metric in metrics.items()},
    )
