"""One training from a data folder to a bundle: the order in which the parts of this room are called."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mri_edge.authoring.writer import check_target
from mri_edge.bundles.manifest import Metric
from mri_edge.bundles.split import Split
from mri_edge.storage.atomic import fingerprint
from mri_edge.train.data import duplicates
from mri_edge.train.data.audit import check_roles, inspect, table
from mri_edge.train.data.folder import Labels, Scan, decode, pixel_bytes, select
from mri_edge.train.data.splits import as_split, choose_test, find_split
from mri_edge.train.evaluation.metrics import measure
from mri_edge.train.evaluation.out_of_distribution import fit_novelty, keras_features
from mri_edge.train.loops.checkpoint import check_space, work_folder
from mri_edge.train.loops.head import Epoch, Images, feature_bytes, fit
from mri_edge.train.loops.progress import training_progress
from mri_edge.train.models.vgg16 import Network, build_network, predict
from mri_edge.train.models.weights import build_backbone, load_weights
from mri_edge.train.recipes import published
from mri_edge.train.recipes.base import Recipe
from mri_edge.train.reports.report import draw_report

from .bundle import write_bundle

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
    split: str | None = None,
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
        One of ``split.SPLITS``, or ``None`` as ``split.find_split`` takes it; ``"grouped"`` keeps near-duplicates
        together, and what ``groups`` does.
    say
        Takes the table of findings in the data, before training, and a line for each thing that takes long.

    Raises
    ------
    UsageError, DataError, WeightsError, OutputError
        The split, the data, the backbone weights or the place for the result are unfit; all said before training.
    """
    split = find_split(split, patients=groups is not None)
    check_target(out, overwrite=overwrite)
    selection = select(data, positive, excluded, groups)
    scans, labels = selection.scans, selection.labels
    truth = np.array([scan.label for scan in scans])
    weights = load_weights(backbone_weights, say)
    facts = [repr(recipe), seed, split, weights.sha256, *selection.facts()]
    work = work_folder(out, facts, overwrite=overwrite, resume=resume)
    features = feature_bytes(len(scans), recipe.preprocessing)  # were all of them for validation
    check_space(work, pixel_bytes(scans, recipe.preprocessing) + features + _MODEL_BYTES)
    say(f"reading {len(scans)} scans")
    decoded = decode(scans, recipe.preprocessing, work / "pixels.npy")
    findings = inspect(scans, decoded.hashes)
    if findings:
        say(table(scans, findings))
    chosen = choose_test(
        split,
        truth,
        duplicates.groups(decoded.hashes, patients=selection.patients),
        test_share=recipe.test_share,
        seed=recipe.split_seed,
    )
    record = as_split(scans, chosen, selection.left_out)
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
            say=progress.note,
            began=progress.started,
            trained=progress.images,
            epoch_ended=progress.epoch,
        )
    say(f"scoring {len(parts['test'])} test images, drawing the report")
    probabilities = predict(network.whole, decoded.pixels, recipe.preprocessing, rows=rows["test"])
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
            **draw_report(
                network,
                parts["test"],
                probabilities,
                metrics,
                history,
                labels,
                recipe,
                beside=repeats_reference(recipe, split, scans),
            ),
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


def repeats_reference(recipe: Recipe, split: str, scans: Sequence[Scan]) -> bool:
    """Whether a training is the reference's own: its recipe and split of its pictures, whole and with nothing added."""
    its_own = (recipe.name, split) == ("reference", "reference")
    return its_own and fingerprint(scan.sha256 for scan in scans) == published.DATA
