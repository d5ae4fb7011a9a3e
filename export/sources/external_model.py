"""Export a model that was made elsewhere: make a bundle for it, and add its artifacts."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mri_edge.authoring.keras_models.loading import ARCHIVE, check_kind
from mri_edge.authoring.provenance import current_provenance
from mri_edge.authoring.writer import KERAS, check_target, new_bundle
from mri_edge.bundles.manifest import Manifest, Training
from mri_edge.bundles.split import SPLIT, Split, SplitImage
from mri_edge.errors import ConversionError, DataError, OutputError, first_line
from mri_edge.export.calibration.images import draw, read_batches
from mri_edge.export.exporter import Result, Settings, Source, add_artifacts
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.scans.readers import recognizes
from mri_edge.storage.atomic import fingerprint, sha256_of

from .keras_model import answers, load
from .preprocessing_check import check_preprocessing
from .saved_model import check_saved_model, load_saved_model

TEST_FRACTION = 0.2
_UNKNOWN = "unknown: the model was made elsewhere"


def export_external(
    path: Path,
    out: Path,
    labels: tuple[str, ...],
    positive: int,
    preprocessing: Preprocessing,
    settings: Settings,
    *,
    overwrite: bool = False,
    step: Callable[[str], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
) -> list[Result]:
    """Make a bundle at ``out`` from a ``.keras`` or ``.h5`` file or a SavedModel folder.

    A fifth of the pictures of each label, drawn by the seed, is compared; the others calibrate.

    Parameters
    ----------
    labels
        In the order of the model's outputs. ``settings.data`` holds one folder of pictures for each.
    positive
        Index of the positive label.
    step
        Called with a line of text before each step.
    warn
        Called with a line of text if the preprocessing does not seem to suit the model.

    Raises
    ------
    BundleError
        The file is no such model, or holds code.
    ConversionError
        Its outputs are not probabilities, or their number differs from that of the labels.
    DataError
        A label has no folder of pictures.
    OutputError, ExportRefusedError
        As for ``exporter.export``.
    """
    check_target(out, overwrite=overwrite)
    step("opening the model")
    model, origin, content = _open(path, preprocessing)
    split = split_pictures(settings.data, labels, settings.seed)
    _check_outputs(model, split, labels, preprocessing, settings.data)
    step("trying the preprocessing")
    located = [(settings.data / image.file, image.label) for role in ("train", "test") for image in split.of(role)]
    if warning := check_preprocessing(model, located, preprocessing, settings.seed):
        warn(warning)
    manifest = _manifest(out.absolute().name, labels, positive, preprocessing, split, settings.seed)
    with new_bundle(out, manifest, overwrite=overwrite) as writer:
        if content is not None:
            if content.startswith(ARCHIVE):
                writer.path(KERAS).write_bytes(content)
            else:
                model.save(writer.path(KERAS))
            writer.add_keras_model()
        writer.add_document(SPLIT, split.to_json())
        return add_artifacts(writer, Source(model, manifest, split, origin), settings, step)


def _open(path: Path, preprocessing: Preprocessing) -> tuple[Any, dict[str, str], bytes | None]:
    """The model, its origin with a hash, and its bytes if it is one file.

    The path is read once, so that the model that is checked is the one that is hashed and exported.
    """
    if not path.is_dir():
        check_kind(path)
        content = path.read_bytes()
        return load(path, content), {"file": KERAS, "sha256": hashlib.sha256(content).hexdigest()}, content
    check_saved_model(path)  # before anything is copied
    with tempfile.TemporaryDirectory(prefix="mri-edge-model-") as name:
        copy = Path(name) / "model"
        try:
            shutil.copytree(path, copy)
        except OSError as error:
            raise OutputError(f"{name}: cannot copy the model there ({first_line(error)})", "Set TMPDIR") from error
        model = load_saved_model(copy, preprocessing.height, preprocessing.width, original=path)
        files = sorted(file for file in copy.rglob("*") if file.is_file())
        return model, {"file": path.name, "sha256": fingerprint(sha256_of(file) for file in files)}, None


def split_pictures(data: Path, labels: tuple[str, ...], seed: int) -> Split:
    """Draw a fifth of each label's pictures as test images, at least one; files of the same bytes have the same role.

    Raises
    ------
    DataError
        A label has no folder of pictures.
    """
    files: list[tuple[Path, int]] = []
    for index, label in enumerate(labels):
        folder = data / label
        pictures = sorted(filter(recognizes, folder.rglob("*"))) if folder.is_dir() else []
        if not pictures:
            raise DataError(
                f"{folder}: no pictures for label {label!r}", "Name the data folder with one folder a label"
            )
        files += [(path, index) for path in pictures]
    hashes = {path: sha256_of(path) for path, _ in files}
    tests: set[str] = set()
    for index in range(len(labels)):
        distinct = {hashes[path]: (path, index) for path, label in files if label == index}
        count = max(1, round(TEST_FRACTION * len(distinct)))
        tests |= {hashes[path] for path in draw(list(distinct.values()), count, seed)}
    return Split(
        tuple(
            SplitImage(
                path.relative_to(data).as_posix(), hashes[path], label, "test" if hashes[path] in tests else "train"
            )
            for path, label in files
        )
    )


def _check_outputs(model: Any, split: Split, labels: tuple[str, ...], preprocessing: Preprocessing, data: Path) -> None:
    """Raise ConversionError for logits or a wrong number of classes, judged by the answers for a few pictures."""
    shape = tuple(model.inputs[0].shape[1:]) if len(model.inputs) == 1 else None
    expected = (preprocessing.height, preprocessing.width, 3)
    if shape != expected:
        raise ConversionError(f"{model.name}: takes {shape}, the preprocessing gives {expected}")
    files = [path for path, _ in split.locate(data, "test")][:4]
    probabilities = answers(model, read_batches(files, preprocessing), preprocessing)
    if probabilities.shape[1] != len(labels):
        raise ConversionError(f"{model.name}: gives {probabilities.shape[1]} classes, --labels names {len(labels)}")
    if probabilities.min() < 0 or not np.allclose(probabilities.sum(axis=1), 1, atol=1e-3):
        raise ConversionError(
            f"{model.name}: its outputs are not probabilities (they sum to {float(probabilities[0].sum()):.3g})",
            "Add a softmax layer, and save the model again",
        )


def _manifest(
    name: str, labels: tuple[str, ...], positive: int, preprocessing: Preprocessing, split: Split, seed: int
) -> Manifest:
    return Manifest(
        name=name,
        version="1",
        labels=labels,
        positive=positive,
        threshold=None,
        preprocessing=preprocessing,
        artifacts=(),
        creation=current_provenance(),
        training=Training(
            recipe=_UNKNOWN,
            seed=seed,  # of the split; the seed of the training is not known
            backbone=_UNKNOWN,
            backbone_weights=_UNKNOWN,
            backbone_sha256="0" * 64,
            data_fingerprint=split.data_fingerprint,
            split="made by export: which images trained this model is not known",
            split_fingerprint=split.split_fingerprint,
            train_images=len(split.of("train")),
            test_images=len(split.of("test")),
            classes={label: [label] for label in labels},
        ),
        limits="Accuracy here may be too good: the model may have been trained on these images.",
    )
