"""Warn about pictures that are unlike the training images, by the means of the network's last feature map.

The features of training images lie near a plane of few dimensions. The distance of a picture is the length of its
component outside that plane: the residual of a principal-component analysis. Jackson and Mudholkar (Technometrics
1979) call its square Q. Square roots are taken first, because means of rectified channels are skewed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.decode import read_array
from mri_edge.bundles.manifest import TensorSpec
from mri_edge.errors import IntegrityError, ManifestError
from mri_edge.scans.checks import ResultWarning

Features = NDArray[np.float32]
FEATURES = "features"  # name of the model's output
_AGAIN = "Make or copy the bundle again"


def distances(features: Features, plane: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the distance of each picture from the plane of the training images.

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


class OutOfDistributionCheck:
    """The plane of one bundle's training images, and the largest distance that causes no warning."""

    def __init__(self, plane: NDArray[np.float32], limit: float, origin: str = "") -> None:
        self.plane = plane
        self.limit = limit
        self._origin = origin

    @classmethod
    def of(cls, bundle: Bundle) -> OutOfDistributionCheck | None:
        """Return the check that training stored in the bundle, or None for a bundle without one.

        Raises
        ------
        IntegrityError
            The plane is damaged.
        """
        stored = bundle.manifest.novelty
        if stored is None:
            return None
        document = bundle.manifest.document(stored.file)
        if document is None:
            raise IntegrityError(f"{bundle.folder}: the manifest names {stored.file}, but does not list it")
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
        if not np.isfinite(plane).all() or stored.limit <= 0:
            raise IntegrityError(f"{path}: the plane or its limit, {stored.limit}, is not valid", _AGAIN)
        return cls(plane, stored.limit, str(path))

    def check_fits(self, outputs: Sequence[TensorSpec]) -> None:
        """Raise IntegrityError unless the model has as many features as the plane, because every scan would fail."""
        features = next((spec for spec in outputs if spec.name == FEATURES), None)
        if features is None:  # the artifact gives probabilities only, so there is nothing to check
            return
        width = features.shape[-1] if len(features.shape) == 2 else None
        if width != self.plane.shape[1]:
            raise IntegrityError(
                f"{self._origin}: is for {self.plane.shape[1]} features, the model gives {features.shape}", _AGAIN
            )

    def warnings_for(self, features: Features) -> list[tuple[ResultWarning, ...]]:
        """Return for each picture the warning that it is unlike the training images, if it is."""
        return [
            (self._warning(distance),) if distance > self.limit else ()
            for distance in distances(features, self.plane).tolist()
        ]

    def _warning(self, distance: float) -> ResultWarning:
        message = f"unlike the training images: distance {distance:.2f}, limit {self.limit:.2f}"
        return ResultWarning("unlike_training", message, round(distance, 3), round(self.limit, 3))
