"""Write into a model file what a program that has no bundle needs to know: labels, threshold, preprocessing, license.

The facts depend only on the manifest and the version of the package, not on the time or the machine, so that a repeated
export gives the same bytes.
"""

from __future__ import annotations

from typing import Any

from mri_edge import __version__
from mri_edge.bundles.manifest import Manifest
from mri_edge.inference.prediction import NOTICE

_NO_RECALIBRATION = (
    "The bundle's manifest may have been recalibrated or given a new threshold after this file was exported. "
    "This file does not contain such changes."
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
        "description": manifest.intended_use or NOTICE,
        "notice": NOTICE,
        "limits": manifest.limits,
        "license": "; ".join(f"{subject}: {text}" for subject, text in manifest.licences.items()),
        "labels": list(manifest.labels),
        "positive_label": manifest.positive_label,
        "threshold": manifest.threshold,
        "decision": f"{_decision(manifest)} {_NO_RECALIBRATION}",
        "preprocessing": {
            "height": preprocessing.height,
            "width": preprocessing.width,
            "framing": preprocessing.framing,
            "resize": "bilinear",
            "half_pixel_centers": True,
            "antialias": preprocessing.resize == "antialiased",
            "keep_aspect_ratio": preprocessing.framing == "head",
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


def _decision(manifest: Manifest) -> str:
    """The rule of ``inference.prediction.decide`` with the label and the threshold of this model."""
    if manifest.threshold is None:
        return "The answer is the most probable label."
    return (
        f"The answer is {manifest.positive_label!r} if its probability is at least {manifest.threshold!r}, "
        "otherwise the most probable other label."
    )
