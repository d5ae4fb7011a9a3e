"""Write into a model file what a program that has no bundle needs to know: labels, threshold, preprocessing, license.

The facts depend only on the manifest and the version of the package, not on the time or the machine, so that a repeated
export gives the same bytes.
"""

from __future__ import annotations

from typing import Any

from mri_edge import __version__
from mri_edge.bundles.manifest import Manifest
from mri_edge.inference.prediction import NOTICE

_MOST_PROBABLE = "The answer is the most probable label."
_BY_THRESHOLD = (
    "The answer is positive_label if its probability is at least threshold, otherwise the most probable other label. "
    "The threshold is that of the bundle when this file was exported. 'mri-edge recalibrate' and a new threshold from "
    "a cross-validation change only the bundle's manifest, so this file does not contain them."
)


def add_metadata(content: bytes, file_format: str, manifest: Manifest) -> bytes:
    """The model file with the facts of ``file_facts`` in it, unchanged if the format has no place for them.

    Parameters
    ----------
    content
        Bytes of a model file.
    file_format
        Format of the artifact as in the manifest.
    manifest
        Of the bundle that gets the artifact.
    """
    if file_format == "onnx":
        from .onnx.metadata import add_onnx_metadata

        return add_onnx_metadata(content, file_facts(manifest))
    if file_format == "tflite":
        from .tflite.metadata import add_tflite_metadata

        return add_tflite_metadata(content, file_facts(manifest))
    return content


def file_facts(manifest: Manifest) -> dict[str, Any]:
    """What a model file says about itself, as plain types. Facts that the manifest does not give are left out.

    ``preprocessing`` is what the caller has to do, ``normalization_in_graph`` what the file does itself.
    """
    preprocessing = manifest.preprocessing
    facts = {
        "name": manifest.name,
        "version": manifest.version,
        "source": f"mri-edge {__version__}",
        "description": manifest.intended_use,
        "notice": NOTICE,
        "limits": manifest.limits,
        "license": "; ".join(f"{subject}: {text}" for subject, text in manifest.licences.items()),
        "labels": list(manifest.labels),
        "positive_label": manifest.positive_label,
        "threshold": manifest.threshold,
        "decision": _MOST_PROBABLE if manifest.threshold is None else _BY_THRESHOLD,
        "preprocessing": {
            "height": preprocessing.height,
            "width": preprocessing.width,
            "resize": preprocessing.resize,
            "half_pixel_centers": True,
            "antialias": False,
            "keep_aspect_ratio": False,
            "layout": "NHWC",
            "channel_order": "RGB",
            "values": [0, 255],
        },
        "normalization_in_graph": {
            "channel_order": preprocessing.channel_order,
            "scale": preprocessing.scale,
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.deviation),
        },
    }
    return {key: value for key, value in facts.items() if value not in (None, "")}
