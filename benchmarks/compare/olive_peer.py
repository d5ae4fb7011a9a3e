"""Have Olive, in its own environment, make its best model of a bundle, calibrated with the same images as ours."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.processes import output
from benchmarks.records.store import FRESH
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.split import SPLIT, Split
from mri_edge.errors import DataError, MriEdgeError
from mri_edge.export.calibration.images import draw, read_batches, record
from mri_edge.storage.atomic import fingerprint, sha256_of

OPTION = {"metavar": "PYTHON", "help": "a Python with olive-ai; its model is kept in build/bench"}  # --olive
PROGRAM = Path(__file__).with_name("olive_best.py")


def olive_model(
    python: str | None, bundle: Bundle, data: Path | None, threads: int
) -> tuple[Path | str, dict[str, Any]]:
    """Return Olive's best model of a bundle's ``model.onnx`` and Olive's report; or the reason why there is none.

    Making it takes minutes and is not timed. It is kept in ``build/bench`` until the model, the calibration images, the
    threads or the recipes change.
    """
    entries = {entry.file: entry.sha256 for entry in bundle.entries()}
    calibration = bundle.manifest.calibration
    if "model.onnx" not in entries:
        return "no model.onnx to start from", {}
    if calibration is None or SPLIT not in entries:
        return "the bundle does not say which images calibrated it", {}
    made_of = fingerprint((entries["model.onnx"], calibration.fingerprint, str(threads), sha256_of(PROGRAM)))
    model = FRESH / f"olive-{made_of[:12]}.onnx"
    report = model.with_suffix(".json")
    if not (model.is_file() and report.is_file()):
        if python is None:
            return "olive-ai needs a separate environment: name its Python with --olive", {}
        if data is None:
            return "no training images to calibrate with", {}
        FRESH.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            pictures = Path(folder) / "calibration.npy"
            try:
                files = calibration_images(bundle, data)
                np.save(pictures, np.concatenate(list(read_batches(files, bundle.manifest.preprocessing))))
                command = [python, PROGRAM, bundle.folder / "model.onnx", pictures, model, threads]
                report.write_text(output(command, cwd=Path(folder))[-1] + "\n", encoding="utf-8")
            except (MriEdgeError, RuntimeError) as error:
                return getattr(error, "problem", str(error)), {}
    return model, json.loads(report.read_text(encoding="utf-8"))


def calibration_images(bundle: Bundle, data: Path) -> tuple[Path, ...]:
    """Return the images that calibrated the bundle's int8 artifacts, drawn again as the exporter drew them.

    Raises
    ------
    DataError
        An image is missing or was changed, or the draw gives other images.
    """
    taken, split = bundle.manifest.calibration, Split.from_json((bundle.folder / SPLIT).read_bytes())
    training = split.without({image.sha256 for image in split.of("test")})
    files = draw(training.locate(data, "train"), taken.images, taken.seed)
    if record(files, taken.method, taken.seed) != taken:
        raise DataError(f"{bundle.folder}: the images that calibrated it cannot be drawn again")
    return files
