"""Export a model made elsewhere: make a bundle for it, and add the artifacts."""

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
from mri_edge.export.options import ModelDescription
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.scans.readers import recognizes
from mri_edge.storage.atomic import fingerprint, sha256_of

from .device_graph import check_classifier
from .keras_model import answers, load
from .preprocessing_check import check_preprocessing
from .saved_model import check_saved_model, load_saved_model

_TEST_FRACTION = 0.2
_UNKNOWN = "unknown: the model was made elsewhere"


def export_external(
    path: Path,
    description: ModelDescription,
    settings: Settings,
    *,
    overwrite: bool = False,
    step: Callable[[str], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
) -> list[Result]:
    """Make a bundle from a ``.keras`` or ``.h5`` file or a SavedModel folder, and add its artifacts.

    A fifth of the pictures of each label, drawn by the seed, are test images. The others calibrate.

    Parameters
    ----------
    step
        Called with a line of text before each step.
    warn
        Called with a line of text if the preprocessing does not seem to suit the model.

    Raises
    ------
    BundleError
        The file is not such a model, or it contains code.
    ConversionError
        Its outputs are not probabilities, or their number differs from that of the labels.
    DataError
        A label has no folder of pictures.
    OutputError, ExportRefusedError
        As for ``exporter.export``.
    """
    out, data, preprocessing = description.bundle, description.data, description.preprocessing
    check_target(out, overwrite=overwrite)
    step("opening the model")
    model, origin, content = _open(path, preprocessing)
    split = split_pictures(data, description.classes, settings.seed)
    _check_outputs(model, split, description)
    step("trying the preprocessing")
    located = [(data / image.file, image.label) for role in ("train", "test") for image in split.of(role)]
    if warning := check_preprocessing(model, located, preprocessing, settings.seed):
        warn(warning)
    manifest = _manifest(description, split, settings.seed)
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


def split_pictures(data: Path, classes: dict[str, list[str]], seed: int) -> Split:
    """Draw a fifth of each label's pictures as test images, at least one. Identical files get the same role.

    ``classes`` gives the folders of each label.

    Raises
    ------
    DataError
        A label has no folder of pictures.
    """
    files: list[tuple[Path, int]] = []
    for index, (label, folders) in enumerate(classes.items()):
        for folder in (data / name for name in folders):
            pictures = sorted(filter(recognizes, folder.rglob("*"))) if folder.is_dir() else []
            if not pictures:
                raise DataError(
                    f"{folder}: no pictures for label {label!r}",
                    "Name with --data the folder that contains one folder per label, or map them: "
                    "--labels FOLDER=LABEL,...",
                )
            files += [(path, index) for path in pictures]
    hashes = {path: sha256_of(path) for path, _ in files}
    tests: set[str] = set()
    for index in range(len(classes)):
        distinct = {hashes[path]: (path, index) for path, label in files if label == index}
        count = max(1, round(_TEST_FRACTION * len(distinct)))
        tests |= {hashes[path] for path in draw(list(distinct.values()), count, seed)}
    return Split(
        tuple(
            SplitImage(
                path.relative_to(data).as_posix(), hashes[path], label, "test" if hashes[path] in tests else "train"
            )
            for path, label in files
        )
    )


def _check_outputs(model: Any, split: Split, description: ModelDescription) -> None:
    """Raise ConversionError if the answers for a few pictures are not one probability for each label."""
    check_classifier(model, description.preprocessing)
    files = [path for path, _ in split.locate(description.data, "test")][:4]
    probabilities = answers(model, read_batches(files, description.preprocessing), description.preprocessing)
    classes, expected = probabilities.shape[1], len(description.labels)
    if classes != expected:
        raise ConversionError(f"{model.name}: gives {classes} classes, --labels names {expected}")
    if probabilities.min() < 0 or not np.allclose(probabilities.sum(axis=1), 1, atol=1e-3):
        raise ConversionError(
            f"{model.name}: its outputs are not probabilities (they sum to {float(probabilities[0].sum()):.3g})",
            "Add a softmax layer, and save the model again",
        )


def _manifest(description: ModelDescription, split: Split, seed: int) -> Manifest:
    return Manifest(
        name=description.bundle.absolute().name,
        version="1",
        labels=description.labels,
        positive=description.positive,
        threshold=None,
        preprocessing=description.preprocessing,
        artifacts=(),
        creation=current_provenance(),
        training=Training(
            recipe=_UNKNOWN,
            seed=seed,  # of the split, because the seed of the training is not known
            backbone=_UNKNOWN,
            backbone_weights=_UNKNOWN,
            backbone_sha256="0" * 64,
            data_fingerprint=split.data_fingerprint,
            split="made by export: which images trained this model is not known",
            split_fingerprint=split.split_fingerprint,
            train_images=len(split.of("train")),
            test_images=len(split.of("test")),
            classes=description.classes,
        ),
        limits="Accuracy here may be too good: the model may have been trained on these images.",
    )
