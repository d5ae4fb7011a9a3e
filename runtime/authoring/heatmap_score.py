"""Describe the score of a bundle's heatmaps, which ``evaluate --heatmaps`` measures and ``--record`` stores."""

from __future__ import annotations

from mri_edge.bundles.manifest import Manifest

from .intervals import with_interval

# The figures for people, in the order in which they are shown. ``train.evaluation.heatmap_score`` computes them.
NAMES = {
    "pointing_game": "peak in the lesion, called lesions",
    "pointing_game_not_called": "peak in the lesion, other lesions",
    "pointing_game_all": "peak in the lesion, all lesions",
    "strict_pointing_game": "peak in the lesion without tolerance, called lesions",
    "strict_pointing_game_all": "peak in the lesion without tolerance, all lesions",
    "random_pointing_game": "a random map: peak in the lesion, called lesions",
    "random_pointing_game_all": "a random map: peak in the lesion, all lesions",
    "center_pointing_game": "the center of the head in the lesion, called lesions",
    "center_pointing_game_all": "the center of the head in the lesion, all lesions",
    "air": "peak in the air",
    "mass_in_lesion": "proportion of the map in the lesion, called lesions",
    "lesion_share": "proportion of the head in the lesion, called lesions",
    "deletion": "mean probability while marked regions are removed",
    "deletion_minus_random": "the same, minus that of a random map",
    "deletion_minus_center": "the same, minus that of the center of the head",
    "insertion": "mean probability while marked regions are restored",
    "insertion_minus_random": "the same, minus that of a random map",
    "insertion_minus_center": "the same, minus that of the center of the head",
    "hot_spots": "called lesions with a hot spot in the map",
    "false_spots": "healthy scans with a hot spot",
}
_DIFFERENCES = ("_minus_random", "_minus_center")


def figure_text(name: str, value: float, low: float, high: float) -> str:
    """Format a figure with its interval; a difference has a sign."""
    return with_interval(value, low, high, signed=name.endswith(_DIFFERENCES))


def facts(manifest: Manifest) -> list[tuple[str, str]]:
    """Return name and value of each fact about the heatmaps' score; empty without one."""
    score = manifest.heatmaps
    if score is None:
        return []
    rows = [
        ("measured", f"{score.created}, {score.artifact} in {score.engine} ({score.provider}): {score.method}"),
        ("scans", f"{score.lesions} lesions drawn in {score.scans} healthy scans, {score.data}"),
    ]
    if score.hot_spot is not None:
        text = f"from {score.hot_spot:g} log-odds, which at most 5% of healthy validation maps reach"
        rows.append(("hot spots", text))
    for name, text in NAMES.items():
        if metric := score.metrics.get(name):
            rows.append((text, f"{figure_text(name, metric.value, metric.low, metric.high)}, {metric.images} maps"))
    return rows
