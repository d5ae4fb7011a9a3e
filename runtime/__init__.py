"""mri-edge: edge-deployable inference for brain-MRI tumour classification.

>>> from mri_edge import Classifier
>>> with Classifier.load() as classifier:
...     print(classifier.predict("scan.jpg").label)

Research use only: not a medical device.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if __name__ != "mri_edge":
    # `python -m pytest` puts the checkout on sys.path; a second copy of every class would follow.
    raise ImportError("this folder is installed as the package 'mri_edge': import that instead of 'runtime'")

__version__ = "0.1.0"

# Scans are patients' data, so nothing here may use the network, and two engines' libraries report to their
# makers. Both are stopped here, because each of our processes imports this package before an engine's library.
# ONNX Runtime's wheels write a device identifier into the user's cache and send events unless this variable is
# set before they are imported. Set it to 0 to allow that.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# `import openvino` posts an event with a client identifier and writes ~/intel. It does neither where it cannot
# import the package `openvino_telemetry`, and the entry None here makes that import fail.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

# All public names and the modules that define them. Each is imported when it is first used, so that `import mri_edge`
# costs nothing. Errors that only training and export raise are in `mri_edge.errors`.
_MODULES = {
    "Artifact": "bundles.manifest",
    "Bundle": "bundles.bundle",
    "BundleError": "errors",
    "Classifier": "inference.classifier",
    "Engine": "engines",
    "EngineError": "errors",
    "EngineUnavailable": "errors",
    "Failure": "inference.prediction",
    "Frame": "scans.frame",
    "InputError": "errors",
    "IntegrityError": "errors",
    "Latency": "inference.prediction",
    "Manifest": "bundles.manifest",
    "ManifestError": "errors",
    "MriEdgeError": "errors",
    "OutputError": "errors",
    "Prediction": "inference.prediction",
    "Preprocessing": "scans.preprocessing",
    "ProviderUnavailable": "errors",
    "ReadOptions": "scans.options",
    "ResultWarning": "scans.checks",
    "RunOptions": "inference.selection",
    "SeriesPrediction": "inference.series",
    "SignatureError": "errors",
    "Source": "scans.frame",
    "UsageError": "errors",
}

__all__ = ["__version__", *sorted(_MODULES)]  # noqa: PLE0604

if TYPE_CHECKING:
    from mri_edge.bundles.bundle import Bundle as Bundle
    from mri_edge.bundles.manifest import Artifact as Artifact
    from mri_edge.bundles.manifest import Manifest as Manifest
    from mri_edge.engines import Engine as Engine
    from mri_edge.inference.classifier import Classifier as Classifier
    from mri_edge.inference.prediction import Failure as Failure
    from mri_edge.inference.prediction import Latency as Latency
    from mri_edge.inference.prediction import Prediction as Prediction
    from mri_edge.inference.selection import RunOptions as RunOptions
    from mri_edge.inference.series import SeriesPrediction as SeriesPrediction
    from mri_edge.scans.checks import ResultWarning as ResultWarning
    from mri_edge.scans.frame import Frame as Frame
    from mri_edge.scans.frame import Source as Source
    from mri_edge.scans.options import ReadOptions as ReadOptions
    from mri_edge.scans.preprocessing import Preprocessing as Preprocessing

    from .errors import BundleError as BundleError
    from .errors import EngineError as EngineError
    from .errors import EngineUnavailable as EngineUnavailable
    from .errors import InputError as InputError
    from .errors import IntegrityError as IntegrityError
    from .errors import ManifestError as ManifestError
    from .errors import MriEdgeError as MriEdgeError
    from .errors import OutputError as OutputError
    from .errors import ProviderUnavailable as ProviderUnavailable
    from .errors import SignatureError as SignatureError
    from .errors import UsageError as UsageError


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'mri_edge' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
