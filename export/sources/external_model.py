"""A model that was made elsewhere: a new bundle around it, and its artefacts in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from mri_edge.authoring.keras_file import KERAS, keras_artefact
from mri_edge.authoring.keras_models.loading import ARCHIVE, check_kind
from mri_edge.authoring.provenance import current_provenance
from mri_edge.authoring.writer import check_target, new_bundle
from mri_edge.bundles.manifest import Manifest, Training
from mri_edge.bundles.split import SPLIT, Split, SplitImage, fingerprint
from mri_edge.errors import ConversionError, DataError
from mri_edge.export.calibration.calibrate import draw, read_batches
from mri_edge.export.exporter import Result, Settings, Source, fill
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.scans.readers import recognizes
from mri_edge.storage.atomic import sha256_of

from . import models
from .preprocessing_check import doubts

TEST_SHARE = 0.2
_UNKNOWN = "unknown: the model was made elsewhere"


def export_foreign(
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

    ``settings.data`` holds one folder of pictures for each label, in the order of the model's outputs.
    ``positive`` is the index of the positive label. A fifth of the pictures of each label, drawn by the seed,
    judges; the others calibrate. ``warn`` takes a line where the preprocessing does not seem to fit the model.

    Raises
    ------
    BundleError
        The file is no such model, gives no probabilities, or has another number of classes.
    DataError
        A label has no folder of pictures.
    OutputError, ExportRefusedError
        As for ``exporter.export``.
    """
    check_target(out, overwrite=overwrite)
    step("opening the model")
    size = (preprocessing.height, preprocessing.width)
    model = models.load_saved_model(path, *size) if path.is_dir() else models.load(path)
    split = divide(settings.data, labels, settings.seed)
    _check_answers(model, split, labels, preprocessing, settings.data)
    step("trying the preprocessing")
    located = [(settings.data / image.file, image.label) for role in ("train", "test") for image in split.of(role)]
    if doubt := doubts(model, located, preprocessing, settings.seed):
        warn(doubt)
    source = Source(
        model,
        _manifest(out.absolute().name, labels, positive, preprocessing, split, settings.seed),
        split,
        _origin(path),
    )
    with new_bundle(out, source.manifest, overwrite=overwrite) as writer:
        if path.is_file():
            if check_kind(path) == ARCHIVE:
                shutil.copyfile(path, writer.path(KERAS))
            else:
                model.save(writer.path(KERAS))
            writer.add_artefact(keras_artefact(preprocessing, len(labels)))
        writer.add_document(SPLIT, split.to_json())
        return fill(writer, source, settings, step)


def divide(data: Path, labels: tuple[str, ...], seed: int) -> Split:
    """Draw a fifth of each label's pictures as test images, one at least; files of the same bytes have one role.

    Raises
    ------
    DataError
        A label has no folder of pictures.
    """
    files: list[tuple[Path, int]] = []
    for index, label in enumerate(labels):
        folder = data / label
        found = sorted(filter(recognizes, folder.rglob("*"))) if folder.is_dir() else []
        if not found:
            raise DataError(
                f"{folder}: no pictures for label {label!r}", "Name the data folder with one folder a label"
            )
        files += [(path, index) for path in found]
    contents = {path: sha256_of(path) for path, _ in files}
    tests: set[str] = set()
    for index in range(len(labels)):
        distinct = {contents[path]: (path, index) for path, label in files if label == index}
        count = max(1, round(TEST_SHARE * len(distinct)))
        tests |= {contents[path] for path in draw(list(distinct.values()), count, seed)}
    return Split(
        tuple(
            SplitImage(path.relative_to(data).as_posix(), its, label, "test" if its in tests else "train")
            for path, label in files
            for its in (contents[path],)
        )
    )


def _check_answers(
    model: keras.Model, split: Split, labels: tuple[str, ...], preprocessing: Preprocessing, data: Path
) -> None:
    """Refuse logits and a wrong number of labels, by what the model says of a few pictures."""
    shape = tuple(model.inputs[0].shape[1:]) if len(model.inputs) == 1 else None
    wanted = (preprocessing.height, preprocessing.width, 3)
    if shape != wanted:
        raise ConversionError(f"{model.name}: takes {shape}, the preprocessing gives {wanted}")
    files = [path for path, _ in split.locate(data, "test")][:4]
    answers = models.answers(model, read_batches(files, preprocessing), preprocessing)
    if answers.shape[1] != len(labels):
        raise ConversionError(f"{model.name}: gives {answers.shape[1]} classes, --labels names {len(labels)}")
    if answers.min() < 0 or not np.allclose(answers.sum(axis=1), 1, atol=1e-3):
        raise ConversionError(
            f"{model.name}: its outputs are no probabilities (they sum to {float(answers[0].sum()):.3g})",
            "Add a softmax layer, and save the model again",
        )


def _origin(path: Path) -> dict[str, str]:
    if path.is_file():
        return {"file": KERAS, "sha256": sha256_of(path)}
    files = sorted(one for one in path.rglob("*") if one.is_file())
    return {"file": path.name, "sha256": fingerprint(sha256_of(one) for one in files)}


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
        artefacts=(),
        creation=current_provenance(),
        training=Training(
            recipe=_UNKNOWN,
            seed=seed,  # of the split: what else was drawn by one is not known
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
