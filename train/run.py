"""One training from a data folder to a bundle: the order in which the parts of this room are called."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from mri_edge.bundle import check_free
from mri_edge.errors import OutputError
from mri_edge.manifest import Metric
from mri_edge.split import Split, fingerprint
from numpy.typing import NDArray

from . import duplicates
from .backbone import build_backbone, load_weights
from .checks import check_roles, inspect, table
from .data import Labels, decode, exclude, find_scans, read_groups
from .fit import Epoch, Images, features_of, fit
from .metrics import measure
from .model import Network, build_network
from .novelty import fit_novelty, keras_features
from .progress import training_progress
from .recipe import Recipe
from .record import write_bundle
from .report import draw_report
from .split import as_split, choose_test

_MODEL_BYTES = 200_000_000  # the bundle, some 90 MB, and the checkpoint, 25 MB, old and new


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
    excluded: Sequence[str] = (),
    groups: Path | None = None,
    split: str = "reference",
    overwrite: bool = False,
    resume: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Trained:
    """Train by ``recipe`` on the scans in ``data`` and write a bundle at ``out``.

    Until it is done, its state lies in a folder beside ``out``, from which ``resume`` goes on.

    Parameters
    ----------
    excluded, groups
        As ``data.exclude`` and ``data.read_groups`` take them.
    split
        One of ``split.SPLITS``; ``"grouped"`` goes by ``groups``, else by near-duplicates.
    say
        Takes the table of findings in the data, before training.

    Raises
    ------
    DataError, WeightsError, OutputError
        The data, the backbone weights or the place for the result are unfit; all said before training.
    """
    check_free(out, overwrite=overwrite)
    everyone, labels = find_scans(data, positive)
    scans, left_out = exclude(everyone, excluded)
    truth = np.array([scan.label for scan in scans])
    patients = read_groups(groups, scans) if groups else None
    weights = load_weights(backbone_weights)
    facts = [repr(recipe), seed, split, patients, [scan.file for scan in left_out], weights.sha256]
    facts += [(scan.file, scan.sha256, scan.label) for scan in scans]
    work = work_folder(out, fingerprint([json.dumps(facts)]), overwrite=overwrite, resume=resume)
    _check_space(work, len(scans), recipe)
    decoded = decode(scans, recipe.preprocessing, work / "pixels.npy")
    findings = inspect(scans, decoded.hashes)
    if findings:
        say(table(scans, findings))
    chosen = choose_test(
        split,
        truth,
        patients if patients else duplicates.groups(decoded.hashes),
        test_share=recipe.test_share,
        seed=recipe.split_seed,
    )
    record = as_split(scans, chosen, left_out)
    check_roles(truth, chosen, labels.names)
    rows = {"train": np.flatnonzero(~chosen), "test": np.flatnonzero(chosen)}
    parts = {role: Images(decoded.pixels, some, truth[some]) for role, some in rows.items()}

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
        split=record,
        split_name=split if groups is None else f"{split} by {groups.name}",
        weights=weights,
        history=history,
        probabilities=probabilities,
        metrics=metrics,
        documents={
            "data.json": json.dumps([asdict(finding) for finding in findings], indent=1) + "\n",
            **draw_report(network, parts["test"], probabilities, metrics, history, labels, recipe),
        },
        novelty=fit_novelty(
            keras_features(backbone, recipe.preprocessing),
            decoded.pixels,
            rows["train"],
            np.empty(0, np.intp),
            seed,
            source=np.array([scan.source for scan in scans]),
        ),
        overwrite=overwrite,
    )
    shutil.rmtree(work, ignore_errors=True)
    return Trained(network, labels, record, history, parts["test"].labels, probabilities, metrics)


def _check_space(work: Path, images: int, recipe: Recipe) -> None:
    """Raise OutputError unless the disk holds the pixels, two checkpoints and the bundle."""
    size = recipe.preprocessing
    wanted = images * size.height * size.width * 3 + _MODEL_BYTES
    free = shutil.disk_usage(work).free
    if free < wanted:
        raise OutputError(
            f"{work.parent}: {free / 1e6:.0f} MB free, this training needs {wanted / 1e6:.0f} MB",
            "Make room, or name an output folder on another disk",
        )


def work_folder(out: Path, identity: str, *, overwrite: bool, resume: bool) -> Path:
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
