"""Export a model made elsewhere without pictures: float artifacts, which nothing compared with Keras on scans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_edge.authoring.writer import BundleWriter, check_target, new_bundle
from mri_edge.bundles.manifest import Artifact
from mri_edge.bundles.split import Split
from mri_edge.errors import ConversionError, EngineError, GateError, MriEdgeError, UsageError
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.scans.resize import resize_bilinear

from .exporter import Failure, opened_artifact
from .formats import Conversion, Format, find_format
from .options import ModelDescription
from .parity.gate import DEFAULT_GATES
from .sources.device_graph import device_graph
from .sources.external_model import add_model, check_outputs, describe, open_model
from .sources.keras_model import answers
from .sources.layers import layer_names

_PICTURES = 16
_COARSE = 7  # pixels on each side of the noise that is enlarged to a picture


def export_uncompared(
    path: Path,
    description: ModelDescription,
    formats: tuple[str, ...],
    *,
    overwrite: bool = False,
    step: Callable[[str], None] = lambda _: None,
    leave_out: Callable[[Failure], None] | None = None,
) -> list[Artifact]:
    """Make a bundle from a model file, and add float artifacts without a comparison on scans.

    A conversion error is still found: each artifact has to agree with Keras on 16 generated pictures, within the limit
    of the gate. These resemble no scan, so the manifest records no parity. Returns the artifacts.

    Parameters
    ----------
    step
        Called with a line of text before each step.
    leave_out
        Called for each format that fails, which the export then continues without.

    Raises
    ------
    UsageError
        A format is quantized. Its error depends on the pictures, so it needs ``--data``.
    BundleError, ConversionError, OutputError
        As for ``export_external``.
    GateError
        An artifact differs from Keras.
    """
    preprocessing = description.preprocessing
    check_target(description.bundle, overwrite=overwrite)
    targets = [find_format(name) for name in formats]
    if leave_out is None:
        for name, target in zip(formats, targets, strict=True):
            _check_float(name, target)
    step("opening the model")
    opened = open_model(path, preprocessing, description.activation)
    pixels = generate_pictures(preprocessing)
    check_outputs(opened.model, [pixels], description)
    expected = answers(opened.model, [pixels], preprocessing)
    conversion = Conversion(
        device_graph(opened.model, preprocessing),
        description.positive if len(description.labels) == 2 else None,
        layers=layer_names(opened.model),
    )
    added: list[Artifact] = []
    failure: MriEdgeError | None = None
    with new_bundle(description.bundle, describe(description, Split(()), 0), overwrite=overwrite) as writer:
        add_model(writer, opened)
        for name, target in zip(formats, targets, strict=True):
            step(f"making {target.FILE}")
            try:
                _check_float(name, target)
                added.append(_add_artifact(target, conversion, writer, pixels, expected))
            except (UsageError, ConversionError, EngineError, GateError) as error:
                failure = type(error)(f"{name}: {error.problem}", error.hint)
                if leave_out is None:
                    raise failure from error
                leave_out(Failure(name, error))
        if failure is not None and not added:
            raise failure
    return added


def generate_pictures(preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Smooth colored noise, and one black and one white picture: uint8 (16, height, width, 3)."""
    noise = np.random.default_rng(0).integers(0, 256, (_PICTURES, _COARSE, _COARSE, 3), dtype=np.uint8)
    noise[0], noise[1] = 0, 255
    return np.asarray(resize_bilinear(list(noise), preprocessing.height, preprocessing.width))


def _check_float(name: str, target: Format) -> None:
    if target.CALIBRATED or target.PRECISION not in ("float32", "float16"):
        raise UsageError(
            f"{name} needs pictures like those that the model was trained on",
            "Name their folder with --data, or choose float formats: --formats onnx,tflite,tflite-fp16",
        )


def _add_artifact(
    target: Format, conversion: Conversion, writer: BundleWriter, pixels: NDArray[np.uint8], expected: Any
) -> Artifact:
    """Make one artifact, run it on the generated pictures, and add it if it agrees with Keras."""
    limit = DEFAULT_GATES[target.PRECISION].max_difference or 0.0
    with opened_artifact(target, conversion, writer) as (path, engine, artifact):
        difference = float(np.abs(engine.run(pixels) - expected).max())
        if not difference <= limit:  # also true for NaN
            raise GateError(f"largest |Δp| on generated pictures is {difference:.2g}, the limit is {limit:g}")
        path.replace(writer.path(target.FILE))
    checked = {"generated_pictures": len(pixels), "max_difference": difference}
    return writer.add_artifact(replace(artifact, made_with={**artifact.made_with, "compared": False, **checked}))
