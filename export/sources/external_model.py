"""Export a model made elsewhere: make a bundle for it, and add the artifacts."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mri_edge.authoring.keras_models.loading import ARCHIVE, check_kind
from mri_edge.authoring.provenance import current_provenance
from mri_edge.authoring.writer import KERAS, BundleWriter, check_target, new_bundle
from mri_edge.bundles.manifest import Manifest, Training
from mri_edge.bundles.split import SPLIT, Split, SplitImage
from mri_edge.errors import ConversionError, DataError, OutputError, first_line
from mri_edge.export.calibration.images import Pixels, draw, hash_picture, pictures_below, read_batches
from mri_edge.export.exporter import Failure, Result, Settings, Source, add_artifacts
from mri_edge.export.options import ModelDescription
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.storage.atomic import fingerprint, sha256_of

from .adapt import Activation, adapt, last_activation
from .device_graph import check_classifier
from .keras_model import answers, load
from .preprocessing_check import check_preprocessing
from .saved_model import check_saved_model, load_saved_model

_TEST_FRACTION = 0.2
_UNKNOWN = "unknown: the model was made elsewhere"
_SPLIT = "made by export: which images trained this model is not known"
_NO_SPLIT = "none: exported without images"
_LIMITS = "Accuracy here may be too good: the model may have been trained on these images."
_NO_COMPARISON = "Not compared with the original model on scans, and its accuracy was not measured."


@dataclass(frozen=True)
class OpenedModel:
    """A Keras model made elsewhere.

    ``content`` is the bytes of the .keras file that contains this very model. It is None if the model has to be saved.
    ``origin`` is the name and hash of a SavedModel, which Keras cannot save in its own format, otherwise None.
    """

    model: Any
    content: bytes | None = None
    origin: dict[str, str] | None = None


def export_external(
    path: Path,
    description: ModelDescription,
    settings: Settings,
    *,
    overwrite: bool = False,
    step: Callable[[str], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
    leave_out: Callable[[Failure], None] | None = None,
) -> list[Result]:
    """Make a bundle from a ``.keras`` or ``.h5`` file or a SavedModel folder, and add its artifacts.

    A fifth of the pictures of each label, drawn by the seed, are test images. The others calibrate.

    Parameters
    ----------
    step
        Called with a line of text before each step.
    warn
        Called with a line of text if the preprocessing does not seem to suit the model.
    leave_out
        As for ``exporter.export``.

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
    out, data, preprocessing = description.bundle, settings.data, description.preprocessing
    check_target(out, overwrite=overwrite)
    step("opening the model")
    opened = open_model(path, preprocessing, description.activation)
    model = opened.model
    split = split_pictures(data, description.classes, settings.seed)
    files = [file for file, _ in split.locate(data, "test")][:4]
    check_outputs(model, read_batches(files, preprocessing), description)
    step("trying the preprocessing")
    located = [(data / image.file, image.label) for role in ("train", "test") for image in split.of(role)]
    if warning := check_preprocessing(model, located, preprocessing, settings.seed):
        warn(warning)
    manifest = describe(description, split, settings.seed)
    with new_bundle(out, manifest, overwrite=overwrite) as writer:
        origin = add_model(writer, opened)
        writer.add_document(SPLIT, split.to_json())
        return add_artifacts(writer, Source(model, manifest, split, origin), settings, step, leave_out)


def add_model(writer: BundleWriter, opened: OpenedModel) -> dict[str, str]:
    """Add the Keras model to a bundle that is being written, if it can be saved.

    Returns the file and the hash of the model that artifacts are compared with. A later export keeps the comparisons
    with the model in the bundle, whose hash differs from that of a file whose model had to be saved.
    """
    if opened.origin is not None:
        return opened.origin
    if opened.content is not None:
        writer.path(KERAS).write_bytes(opened.content)
    else:
        opened.model.save(writer.path(KERAS))
    return {"file": KERAS, "sha256": writer.add_keras_model().sha256}


def open_model(path: Path, preprocessing: Preprocessing, activation: Activation | None) -> OpenedModel:
    """Open a model file or SavedModel, and adapt its input and output.

    The path is read once, so that the model that is checked is the one that is hashed and exported.

    Raises
    ------
    BundleError, ConversionError, OutputError
        As for ``export_external``.
    """
    if not path.is_dir():
        check_kind(path)
        content = path.read_bytes()
        model = load(path, content)
        adapted = adapt(model, preprocessing, activation)
        unchanged = adapted is model and content.startswith(ARCHIVE)
        return OpenedModel(adapted, content if unchanged else None)
    check_saved_model(path)  # before anything is copied
    with tempfile.TemporaryDirectory(prefix="mri-edge-model-") as name:
        copy = Path(name) / "model"
        try:
            shutil.copytree(path, copy)
        except OSError as error:
            raise OutputError(f"{name}: cannot copy the model there ({first_line(error)})", "Set TMPDIR") from error
        model = load_saved_model(copy, preprocessing.height, preprocessing.width, original=path)
        files = sorted(file for file in copy.rglob("*") if file.is_file())
        origin = {"file": path.name, "sha256": fingerprint(sha256_of(file) for file in files)}
        return OpenedModel(adapt(model, preprocessing, activation), origin=origin)


def split_pictures(data: Path, classes: dict[str, list[str]], seed: int) -> Split:
    """Draw a fifth of each label's pictures as test images, at least one. Identical files get the same role.

    ``classes`` gives the folders of each label.

    Raises
    ------
    DataError
        A label has no folder of pictures, or a file or folder cannot be read.
    """
    files: list[tuple[Path, int]] = []
    for index, (label, folders) in enumerate(classes.items()):
        for folder in (data / name for name in folders):
            pictures = pictures_below(folder) if os.path.isdir(folder) else []
            if not pictures:
                raise DataError(
                    f"{folder}: no pictures for label {label!r}",
                    "Name with --data the folder that contains one folder per label, or map them: "
                    "--labels FOLDER=LABEL,...",
                )
            files += [(path, index) for path in pictures]
    hashes = {path: hash_picture(path) for path, _ in files}
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


def check_outputs(model: Any, batches: Iterable[Pixels], description: ModelDescription) -> None:
    """Raise ConversionError if the answers for a few pictures are not one probability for each label."""
    check_classifier(model, description.preprocessing)
    probabilities = answers(model, batches, description.preprocessing)
    classes, expected = probabilities.shape[1], len(description.labels)
    if classes != expected:
        raise ConversionError(f"{model.name}: gives {classes} classes, --labels names {expected}")
    single = model.outputs[0].shape[1] == 1
    # Of one output both columns sum to 1 in any case, and a logit may lie between 0 and 1 for all of a few pictures.
    unbounded = single and last_activation(model) == "linear"
    if unbounded or probabilities.min() < 0 or not np.allclose(probabilities.sum(axis=1), 1, atol=1e-3):
        needed = "sigmoid" if single else "softmax"
        raise ConversionError(
            f"{model.name}: its outputs are not probabilities (they sum to {float(probabilities[0].sum()):.3g}, "
            f"the smallest is {float(probabilities.min()):.3g})",
            f"If they are logits, add --activation {needed}",
        )


def describe(description: ModelDescription, split: Split, seed: int) -> Manifest:
    """The manifest of a model made elsewhere. The split is empty if there are no pictures."""
    compared = bool(split.images)
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
            split=_SPLIT if compared else _NO_SPLIT,
            split_fingerprint=split.split_fingerprint,
            train_images=len(split.of("train")),
            test_images=len(split.of("test")),
            classes=description.classes,
        ),
        limits=_LIMITS if compared else _NO_COMPARISON,
    )
