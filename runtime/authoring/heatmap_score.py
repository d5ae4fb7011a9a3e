"""Describe the score of a bundle's heatmaps, which ``evaluate --heatmaps`` measures and ``--record`` stores."""

from __future__ import annotations

from mri_edge.bundles.manifest import Manifest

from .intervals import with_interval

# The names of the figures for people, in the order in which they are shown. Other names are shown as they are.
NAMES = {
    "pointing_called": "peak in the lesion, called lesions",
    "pointing_not_called": "peak in the lesion, other lesions",
    "pointing": "peak in the lesion, all lesions",
    "pointing_strict_called": "peak in the undilated lesion, called lesions",
    "pointing_strict": "peak in the undilated lesion, all lesions",
    "pointing_random": "the same of a random map, all lesions",
    "pointing_random_called": "the same of a random map, called lesions",
    "pointing_center": "the same of the center of the head, all lesions",
    "pointing_center_called": "the same of the center of the head, called lesions",
    "air": "peak in the air",
    "mass_in_lesion": "proportion of the map in the lesion",
    "lesion_share": "proportion of the head in the lesion",
    "deletion_minus_random": "deletion, minus a random map",
    "deletion_minus_center": "deletion, minus the center of the head",
    "insertion_minus_random": "insertion, minus a random map",
    "insertion_minus_center": "insertion, minus the center of the head",
    "false_spots": "healthy scans with a hot spot",
}
_SIGNED = ("_minus_random", "_minus_center")  # differences
# What the card and ``info`` show. The manifest and ``--json`` have every figure.
_SHOWN = (
    "pointing_called",
    "pointing_not_called",
    "pointing_strict_called",
    "pointing_random_called",
    "pointing_center_called",
    "air",
    "mass_in_lesion",
    "lesion_share",
    "deletion_minus_random",
    "insertion_minus_random",
    "false_spots",
)


def is_signed_figure(name: str) -> bool:
    """Whether a figure is a difference, which is shown with its sign."""
    return name.endswith(_SIGNED)


def facts(manifest: Manifest) -> list[tuple[str, str]]:
    """Return name and value of each fact about the heatmaps' score; empty without one."""
    score = manifest.heatmaps
    if score is None:
        return []
    rows = [
        ("measured", f"{score.created}, {score.artifact} in {score.engine} ({score.provider}): {score.method}"),
        ("scans", f"{score.lesions} lesions drawn in {score.scans} healthy scans, {score.data}"),
    ]
    for name in _SHOWN:
        if metric := score.metrics.get(name):
            text = with_interval(metric.value, metric.low, metric.high, signed=is_signed_figure(name))
            rows.append((NAMES[name], f"{text}, {metric.images} maps"))
    return rows
