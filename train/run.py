"""One training from a data folder to a bundle: the order in which the parts of this room are called."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mri_edge.bundle import check_free
from mri_edge.errors import OutputError
from mri_edge.manifest import Metric
from mri_edge.split import Split
from numpy.typing import NDArray

from .backbone import build_backbone, load_weights
from .data import Labels, decode, find_scans
from .fit import Epoch, Images, features_of, fit
from .metrics import measure
from .model import Network, build_network
from .progress import training_progress
from .recipe import Recipe
from .record import write_bundle
from .split import reference_split


@dataclass(frozen=True)
class Trained:
    """What a training gave, beside the bundle: probabilities float32 (test images, classes) and labels (N,)."""

    network: Network
    labels: Labels
    split: Split
    history: list[Epoch]
    truth: NDArray[np.intp]
    probabilities: NDArray[np.float32]
    metrics: dict[str, Metric]
    threshold: float | None = None


def train_bundle(
    data: Path,
    out: Path,
    recipe: Recipe,
    *,
    backbone_weights: str,
    seed: int,
    name: str = "vgg16",
    positive: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
) -> Trained:
    """Train by ``recipe`` on the scans in ``data`` and write a bundle at ``out``.

    Until it is done, its state lies in a folder beside ``out``, from which ``resume`` goes on.

    Raises
    ------
    DataError, WeightsError, OutputError
        The data, the backbone weights or the place for the result are unfit; all said before training.
    """
    check_free(out, overwrite=overwrite)
    scans, labels = find_scans(data, positive)
    split = reference_split(scans, test_share=recipe.test_share, seed=recipe.split_seed)
    weights = load_weights(backbone_weights)
    work = _work_folder(out, _identity(recipe, seed, split, weights.sha256), overwrite=overwrite, resume=resume)
    pixels = decode(scans, recipe.preprocessing, work / "pixels.npy")
    truth = np.array([scan.label for scan in scans])
    roles = np.array([image.role for image in split.images])
    rows = {role: np.flatnonzero(roles == role) for role in ("train", "test")}
    parts = {role: Images(pixels, chosen, truth[chosen]) for role, chosen in rows.items()}

    backbone = build_backbone(weights, recipe.preprocessing.height, recipe.preprocessing.width)
    network = build_network(backbone, recipe, len(labels.names), seed)
    with training_progress(len(parts["train"]), recipe.epochs) as progress:
        history = fit(
            network,
            parts["train"],
            parts["test"],
            recipe,
            seed=seed,
            checkpoint=work / "checkpoint.npz",
            trained=progress.images,
            epoch_ended=progress.epoch,
        )
    probabilities = network.head.predict_on_batch(features_of(parts["test"], recipe, backbone.predict_on_batch))
    metrics = measure(parts["test"].labels, probabilities, labels.positive)
    write_bundle(
        out,
        network,
        name=name,
        recipe=recipe,
        seed=seed,
        labels=labels,
        split=split,
        weights=weights,
        history=history,
        probabilities=probabilities,
        metrics=metrics,
        overwrite=overwrite,
    )
    shutil.rmtree(work, ignore_errors=True)
    return Trained(network, labels, split, history, parts["test"].labels, probabilities, metrics)


def _identity(recipe: Recipe, seed: int, split: Split, weights_sha256: str) -> str:
    """SHA-256 over all that decides the result: a checkpoint goes on only with the same."""
    facts = [repr(recipe), seed, split.data_fingerprint, split.split_fingerprint, weights_sha256]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _work_folder(out: Path, identity: str, *, overwrite: bool, resume: bool) -> Path:
    """The folder beside ``out`` that holds the state of an unfinished training.

    Raises
    ------
    OutputError
        An unfinished training is there and ``resume`` was not said, or it is another one.
    """
    work = out.absolute().with_name(f".{out.name}.training")
    record = work / "identity"
    try:
        if work.exists() and not resume:
            if not overwrite:
                raise OutputError(
                    f"{work}: an unfinished training is there", "--resume goes on with it, --overwrite begins anew"
                )
            shutil.rmtree(work)
        if record.is_file() and record.read_text() != identity:
            raise OutputError(
                f"{work}: the unfinished training there has another recipe, seed, data or backbone",
                "Give it the same options, or begin anew with --overwrite",
            )
        work.mkdir(parents=True, exist_ok=True)
        record.write_text(identity)
    except OSError as error:
        raise OutputError(f"{work}: cannot write ({error.strerror})", "Name another output folder") from error
    return work
