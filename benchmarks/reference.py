"""The reference's test images: where they are, what the network takes, and how answers compare with Keras'."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.processes import CHECKOUT
from mri_edge import Bundle
from mri_edge.authoring.intervals import wilson_interval
from mri_edge.inference.prediction import decide
from mri_edge.scans import readers
from mri_edge.scans.readers import picture
from mri_edge.storage.atomic import sha256_of


def data_folder() -> Path | None:
    """Return the folder of real scans, ``MRI_EDGE_DATA`` or beside the checkout; None if it does not exist."""
    folder = Path(os.environ.get("MRI_EDGE_DATA") or CHECKOUT.parent / "shared" / "data")
    return folder if (folder / "navoneel" / "yes").is_dir() else None


def reference_images(bundle: Bundle, data: Path | None) -> list[dict[str, Any]]:
    """Return the test images of ``parity.json`` with labels and Keras' probabilities; empty without data or that file.

    A shipped bundle identifies images by hash alone, so ``file``, relative to ``data``, is found by hashing.
    """
    entry = next((document for document in bundle.manifest.documents if document.file == "parity.json"), None)
    if data is None or entry is None:
        return []
    pictures = (path for path in sorted(data.rglob("*")) if readers.has_known_suffix(path))
    found = {sha256_of(path): path.relative_to(data).as_posix() for path in pictures}
    images = json.loads(bundle.read(entry))["images"]
    return [{**image, "file": found[image["sha256"]["file"]]} for image in images if image["sha256"]["file"] in found]


def tensors_of(bundle: Bundle, files: Sequence[Path]) -> np.ndarray:
    """Return images as the network takes them: uint8 (N, H, W, 3)."""
    return np.stack([bundle.manifest.preprocessing.resize_picture(picture.load(file)) for file in files])


def agreement(bundle: Bundle, images: list[dict[str, Any]], probabilities: np.ndarray) -> dict[str, Any]:
    """Return accuracy with its interval, labels that differ from Keras', and the mean difference of probabilities.

    ``probabilities`` are float32 (N, classes), of ``images`` as ``reference_images`` returns them.
    """
    manifest = bundle.manifest
    reference = np.array([image["probabilities"] for image in images], np.float32)
    y_true = np.array([manifest.labels.index(image["label"]) for image in images])
    y_pred, keras = (decide(answer, manifest.positive, manifest.threshold) for answer in (probabilities, reference))
    return {
        "accuracy": asdict(wilson_interval(int((y_pred == y_true).sum()), len(y_true))),
        "flips": int((y_pred != keras).sum()),
        "mean_difference": float(np.abs(probabilities - reference).mean()),
    }
