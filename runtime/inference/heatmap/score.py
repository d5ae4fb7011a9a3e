"""Refuse heatmap pictures of an artifact that was measured to point at too few lesions."""

from __future__ import annotations

from mri_edge.bundles.manifest import Metric
from mri_edge.errors import UsageError
from mri_edge.inference.classifier import Classifier

# Proportion of drawn and called lesions in which the peak of the map must lie. Below it a picture would mislead: a
# reader expects the peak to mark the lesion, and with fewer than four in five that is too often wrong.
LEAST_SCORE = 0.8
FIGURE = "pointing_game"  # name of that proportion in the metrics of the score


def required_score(classifier: Classifier) -> Metric | None:
    """Return the pointing game of the artifact that runs: the proportion of called lesions in which its peak lies.

    None if it was not measured. The score of another artifact does not count, because its maps may differ.

    Raises
    ------
    UsageError
        The score is below ``LEAST_SCORE``, so no picture may be drawn. ``Classifier.predict(..., explain=True)``
        returns the map of such an artifact all the same.
    """
    manifest, artifact = classifier.bundle.manifest, classifier.artifact
    heatmaps = manifest.heatmaps
    if heatmaps is None or heatmaps.sha256 != artifact.sha256 or FIGURE not in heatmaps.metrics:
        return None
    score = heatmaps.metrics[FIGURE]
    if score.value < LEAST_SCORE:
        raise UsageError(
            f"heatmaps of {manifest.title}, {artifact.file}, point at the lesion in {score.value:.2f} "
            f"({score.low:.2f} to {score.high:.2f}) of drawn lesions that it called, "
            f"at least {LEAST_SCORE} is required",
            "Choose another --model or --artifact",
        )
    return score
