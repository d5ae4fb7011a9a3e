"""Check before a service takes its first scan that the model works."""

from __future__ import annotations

import numpy as np

from mri_edge.errors import EngineError, MriEdgeError, first_line
from mri_edge.inference.classifier import Classifier


def check_model(classifier: Classifier) -> None:
    """Classify a blank picture. Raises EngineError, so that no scan is reported for a fault of the model."""
    preprocessing = classifier.bundle.manifest.preprocessing
    try:
        classifier.predict(np.zeros((preprocessing.height, preprocessing.width, 3), np.uint8))
    except MriEdgeError:
        raise
    except Exception as error:
        raise EngineError(
            f"{classifier.bundle.folder}: the model fails on a blank picture ({first_line(error)})",
            "Copy or export the bundle again",
        ) from error
