"""Olive's best for a bundle: made in Olive's own environment, calibrated as our int8 artefacts are, and kept."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from records import FRESH

from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.split import SPLIT, Split
from mri_edge.errors import DataError, MriEdgeError
from mri_edge.export.calibration.images import draw, read_batches, record
from mri_edge.storage.atomic import fingerprint, make_folder, sha256_of

PROGRAM = Path(__file__).with_name("olive_best.py")


def olive_model(
    python: str | None, bundle: Bundle, data: Path | None, threads: int
) -> tuple[Path | str, dict[str, Any]]:
    """Olive's best for a bundle's ``model.onnx`` and what Olive says of it; or the reason why there is none.

    Kept in ``build/bench`` until the model, the images that calibrate, the threads or the recipes change: it takes
    minutes, and is no part of what is timed.
    """
    held = {one.file: one.sha256 for one in bundle.entries()}
    if "model.onnx" not in held:
        return "no model.onnx to start from", {}
    calibration = bundle.manifest.calibration
    if calibration is None or SPLIT not in held:
        return "the bundle does not say which images calibrated it", {}
    made_of = fingerprint((held["model.onnx"], calibration.fingerprint, str(threads), sha256_of(PROGRAM)))
    out = FRESH / f"olive-{made_of[:12]}.onnx"
    said = out.with_suffix(".json")
    if out.is_file() and said.is_file():
        return out, json.loads(said.read_text(encoding="utf-8"))
    if python is None:
        return "olive-ai wants an environment of its own: name its Python with --olive", {}
    if data is None:
        return "no training images to calibrate with", {}
    make_folder(FRESH)
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "calibration.npy"
        try:
            files = calibration_images(bundle, data)
            np.save(pictures, np.concatenate(list(read_batches(files, bundle.manifest.preprocessing))))
        except MriEdgeError as error:
            return error.problem, {}
        command = [python, PROGRAM, bundle.folder / "model.onnx", pictures, out, threads]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode or not out.is_file():
        return (done.stderr.strip().splitlines() or ["it said nothing"])[-1], {}
    answer = done.stdout.splitlines()[-1]
    said.write_text(answer + "\n", encoding="utf-8")
    return out, json.loads(answer)


def calibration_images(bundle: Bundle, data: Path) -> tuple[Path, ...]:
    """The very images that set the ranges of the bundle's int8 artefacts, drawn anew as the exporter drew them.

    Raises
    ------
    DataError
        An image is not at hand or was changed, or others come out.
    """
    taken, split = bundle.manifest.calibration, Split.from_json((bundle.folder / SPLIT).read_bytes())
    training = split.without({one.sha256 for one in split.of("test")})
    files = draw(training.locate(data, "train"), taken.images, taken.seed)
    if record(files, taken.method, taken.seed) != taken:
        raise DataError(f"{bundle.folder}: the images that calibrated it cannot be drawn anew")
    return files
