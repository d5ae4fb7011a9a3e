"""How far a picture is from the training images, by the means of the network's last feature map.

Training images lie near a plane of few dimensions: the distance is what a picture has outside that
plane (the residual of a principal-component analysis; Jackson and Mudholkar, Technometrics 1979, call
its square Q). Square roots are taken first, since means of rectified channels are skewed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mri_edge.bundles.arrays import read_array
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import TensorSpec
from mri_edge.errors import IntegrityError, ManifestError
from mri_edge.scans.result_warning import ResultWarning

Features = NDArray[np.float32]
FEATURES = "features"  # the name of the output that they come from
_AGAIN = "Make or copy the bundle again"


def distances(features: Features, plane: NDArray[np.float32]) -> NDArray[np.float32]:
    """Distance of each picture from the plane of the training images.

    Parameters
    ----------
    features
        float32 (N, channels), at least 0.
    plane
        float32 (1 + dimensions, channels): the mean of the square roots, then orthonormal directions.

    Returns
    -------
    float32 (N,), in units of the square roots.
    """
    offset = np.sqrt(np.maximum(features, 0)) - plane[0]
    inside = offset @ plane[1:].T
    outside = (offset**2).sum(axis=1) - (inside**2).sum(axis=1)
    result: NDArray[np.float32] = np.sqrt(np.maximum(outside, 0))
    return result


class NoveltyCheck:
    """The plane and the limit of one bundle."""

    def __init__(self, plane: NDArray[np.float32], limit: float, origin: str = "") -> None:
        self.plane = plane
        self.limit = limit
        self._origin = origin

    @classmethod
    def of(cls, bundle: Bundle) -> NoveltyCheck | None:
        """The check that training fitted, or None for a bundle without one.

        Raises
        ------
        IntegrityError
            The plane is damaged.
        """
        fitted = bundle.manifest.novelty
        if fitted is None:
            return None
        document = next((one for one in bundle.manifest.documents if one.file == fitted.file), None)
        if document is None:
            raise IntegrityError(f"{bundle.folder}: the manifest names {fitted.file}, but does not list it")
        path = bundle.folder / document.file
        content = bundle.read(document)
        try:
            plane = read_array(content, str(path))
        except ManifestError as error:
            raise IntegrityError(error.problem, error.hint) from error
        if plane.ndim != 2 or len(plane) < 2 or plane.dtype != np.float32:
            raise IntegrityError(
                f"{path}: must be float32 (1 + dimensions, channels). Received: {plane.dtype} {plane.shape}", _AGAIN
            )
        if not np.isfinite(plane).all() or fitted.limit <= 0:
            raise IntegrityError(f"{path}: the plane or its limit, {fitted.limit}, cannot be", _AGAIN)
        return cls(plane, fitted.limit, str(path))

    def check_fits(self, outputs: Sequence[TensorSpec]) -> None:
        """Raise IntegrityError unless the model's features are as wide as the plane: else every scan would fail."""
        features = next((spec for spec in outputs if spec.name == FEATURES), None)
        if features is None:  # an artefact that gives probabilities alone is not checked for novelty
            return
        width = features.shape[-1] if len(features.shape) == 2 else None
        if width != self.plane.shape[1]:
            raise IntegrityError(
                f"{self._origin}: is for {self.plane.shape[1]} features, the model gives {features.shape}", _AGAIN
            )

    def doubts(self, features: Features) -> list[tuple[ResultWarning, ...]]:
        """For each picture the reason to doubt it, or nothing."""
        return [
            (self._warning(distance),) if distance > self.limit else ()
            for distance in distances(features, self.plane).tolist()
        ]

    def _warning(self, distance: float) -> ResultWarning:
        words = f"unlike the training images: distance {distance:.2f}, limit {self.limit:.2f}"
        return ResultWarning("unlike_training", words, round(distance, 3), round(self.limit, 3))
