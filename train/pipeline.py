"""Train any recipe, from a data folder to a bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mri_edge.authoring.teacher import TEACHER
from mri_edge.authoring.writer import FINDINGS, check_target
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import Metric
from mri_edge.bundles.split import Split
from mri_edge.errors import DataError, UsageError
from mri_edge.storage.atomic import fingerprint
from mri_edge.train.data.audit import Finding, audit, check_groups
from mri_edge.train.data.collection import collect, store_bytes
from mri_edge.train.data.folder import Scan
from mri_edge.train.data.grouping import GroupRule, parse_groups
from mri_edge.train.data.labels import Labels
from mri_edge.train.data.roles import assign_roles, find_split, rows_of
from mri_edge.train.data.selection import Selection, select
from mri_edge.train.evaluation.metrics import measure
from mri_edge.train.evaluation.out_of_distribution import fit_out_of_distribution, keras_features
from mri_edge.train.loops.checkpoint import check_space, has_state, work_folder
from mri_edge.train.loops.distil import BundleTeacher, open_pool
from mri_edge.train.loops.finetune import fast_precision
from mri_edge.train.loops.head import Epoch, Images
from mri_edge.train.loops.progress import step_progress
from mri_edge.train.models.network import Network, predict
from mri_edge.train.models.registry import find_backbone
from mri_edge.train.models.weights import BackboneWeights
from mri_edge.train.recipes import reference
from mri_edge.train.recipes.base import Distillation, FineTuning, HeadTraining, RecipeSpec
from mri_edge.train.reports.report import draw_report

from .bundle import write_bundle
from .training import Job, Trained, draw_pool, pool_bytes, train_model

# Space for the bundle and for two checkpoints, while the new one replaces the old one. A checkpoint of fine-tuning has
# the weights, both moments of AdamW and the running mean; students are small.
_MODEL_BYTES = {HeadTraining: 200_000_000, FineTuning: 700_000_000, Distillation: 5_000_000}


@dataclass(frozen=True)
class TrainedBundle:
    """The result of a training, besides its bundle.

    ``truth`` int (N,) and ``probabilities`` float32 (N, classes) belong to the test images.
    """

    network: Network
    labels: Labels
    split: Split
    history: Sequence[Epoch]
    truth: NDArray[np.intp]
    probabilities: NDArray[np.float32]
    metrics: dict[str, Metric]
    threshold: float | None = None


def train_bundle(
    data: Path,
    out: Path,
    recipe: RecipeSpec,
    *,
    seed: int,
    backbone_weights: str = "auto",
    teachers: Sequence[str] = (),
    name: str | None = None,
    positive: str | None = None,
    labels: str | None = None,
    excluded: Sequence[str] = (),
    groups: str | Path | None = None,
    split: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> TrainedBundle:
    """Train ``recipe`` on the scans in ``data`` and write a bundle at ``out``.

    The state of an unfinished training is kept in a folder next to ``out``; ``resume`` continues from it, and is
    refused if there is none.

    Parameters
    ----------
    backbone_weights
        As for ``models.weights.load_weights``; a distillation does not use it.
    teachers
        Bundle folders or names of embedded models, trained on the same split of the same data. A distillation learns
        the mean of their answers.
    name
        Name of the model in the manifest; ``None`` uses that of the recipe's run folder.
    positive, labels
        As ``positive`` and ``rule`` of ``data.labels.choose_labels``.
    excluded
        As for ``data.selection.exclude``.
    groups
        As for ``data.grouping.parse_groups``; None means near-duplicates.
    split
        One of the recipe's splits, or ``None`` for the default of ``data.roles.find_split``. A distillation uses the
        split of its teachers.
    say
        Called with a message before each long step, and with the findings of ``data.audit.audit``.

    Raises
    ------
    UsageError, DataError, WeightsError, BundleError, OutputError
        The split, the data, the weights, a teacher or the output folder cannot be used. All are raised before training.
    """
    rule = None if groups is None else parse_groups(groups)
    split = find_split(split, rule, recipe.split)
    check_target(out, overwrite=overwrite)
    if resume and not has_state(out):
        raise UsageError(f"{out}: has no interrupted training", "Train without --resume")
    selection = select(data, positive, excluded, rule, labels=labels, say=say)
    scans = selection.scans
    with ExitStack() as stack:
        teacher: BundleTeacher | None = None
        if isinstance(recipe.schedule, Distillation):
            bundles = [Bundle.open(bundle) for bundle in teachers]
            teacher = stack.enter_context(closing(BundleTeacher(bundles, selection.labels, recipe.preprocessing)))
            weights = teacher.origin()
        else:
            weights = find_backbone(recipe.backbone).load_weights(backbone_weights, say)
        facts = _facts(recipe, selection, weights, seed, split)
        work = work_folder(out, facts, overwrite=overwrite, resume=resume)
        _check_space(work, recipe, scans)
        say(f"reading {len(scans)} scans")
        collection = collect(
            scans,
            recipe.preprocessing,
            rule=rule,
            patients=selection.patients,
            store=work,
            with_slices=recipe.needs_slices,
        )
        names = selection.labels.names
        if teacher:  # the training of the teacher has audited the data and split them
            findings: list[Finding] = []
            record = _split_of_teacher(teacher, scans, work)
        else:
            findings = audit(collection, rule, say)
            if split == "grouped" or recipe.split.keep_apart:
                check_groups(collection, names)
            record = assign_roles(collection, recipe.split, split, names, selection.left_out, seed)
        train, validation, test = rows_of(record, collection)
        job = Job(collection, selection.labels, train, validation, test, weights, seed, work)
        pool = None
        if teacher:
            with step_progress("asking the teacher") as report:
                pool = draw_pool(job, recipe, teacher, work, report)
        trained = train_model(job, recipe, pool)
        say(f"scoring {len(test)} test images")
        documents: dict[str, str | bytes] = {}
        if teacher:
            documents[TEACHER] = teacher.answers(collection.pixels[test]).to_json()
    finished = _write(
        out,
        recipe,
        job,
        trained,
        record,
        weights,
        name=name or recipe.run_name,
        documents=documents,
        findings=None if teacher else findings,
        split_name=_split_name(recipe, split, rule, collection.grouping),
        compare_with_published=repeats_reference(recipe, split, scans),
        grouped=rule is not None,
        overwrite=overwrite,
    )
    shutil.rmtree(work, ignore_errors=True)
    return finished


def repeats_reference(recipe: RecipeSpec, split: str, scans: Sequence[Scan]) -> bool:
    """Return whether a training repeats the reference's: the same recipe, split and pictures."""
    same = (recipe.name, split) == ("reference", "reference")
    return same and fingerprint(scan.sha256 for scan in scans) == reference.DATA


def _facts(recipe: RecipeSpec, selection: Selection, weights: BackboneWeights, seed: int, split: str) -> list[object]:
    """Return what must stay the same for ``--resume``, in plain types."""
    schedule = recipe.schedule
    if isinstance(schedule, Distillation):
        # A resumed distillation reuses the pool, which is expensive and does not depend on the training of the student.
        decides: list[object] = [repr(recipe.preprocessing), repr(recipe.transforms)]
        decides += [schedule.batch, schedule.pool_views, seed]
    else:
        tuned = isinstance(schedule, FineTuning)
        precision = fast_precision(find_backbone(recipe.backbone)) if tuned else "float32"
        decides = [repr(recipe), precision, seed, split]
    return [*decides, weights.sha256, *selection.facts()]


def _check_space(work: Path, recipe: RecipeSpec, scans: Sequence[Scan]) -> None:
    needed = store_bytes(scans, recipe.preprocessing, with_slices=recipe.needs_slices)
    needed += feature_bytes(recipe, len(scans)) + _MODEL_BYTES[type(recipe.schedule)]
    if open_pool(work) is None:
        needed += pool_bytes(recipe)
    check_space(work, needed)


def feature_bytes(recipe: RecipeSpec, images: int) -> int:
    """Return an upper bound of the bytes of the features that a head training stores: those of all ``images``."""
    if not isinstance(recipe.schedule, HeadTraining):
        return 0
    backbone, size = find_backbone(recipe.backbone), recipe.preprocessing
    places = (size.height // backbone.feature_stride) * (size.width // backbone.feature_stride)
    return images * places * backbone.feature_channels * np.dtype(np.float32).itemsize


def _split_of_teacher(teacher: BundleTeacher, scans: Sequence[Scan], work: Path) -> Split:
    try:
        return teacher.split_of(scans)
    except DataError:
        shutil.rmtree(work, ignore_errors=True)  # there is nothing to resume
        raise


def _split_name(recipe: RecipeSpec, split: str, rule: GroupRule | None, grouping: str) -> str:
    """Describe the split for the manifest."""
    if recipe.needs_teacher:
        return "that of the teacher"
    if recipe.split.keep_apart:
        return f"test kept apart by {grouping}, validation by group"
    return split if rule is None else f"{split} by {grouping}"


def _write(
    out: Path,
    recipe: RecipeSpec,
    job: Job,
    trained: Trained,
    record: Split,
    weights: BackboneWeights,
    *,
    name: str,
    documents: dict[str, str | bytes],
    findings: Sequence[Finding] | None,
    split_name: str,
    compare_with_published: bool,
    grouped: bool,
    overwrite: bool,
) -> TrainedBundle:
    """Score the test images, fit the out-of-distribution check and write the bundle.

    With ``grouped``, the intervals of all metrics take the images of a group as dependent.
    """
    data, labels = job.data, job.labels
    _, _, test = rows_of(record, data)
    truth = data.label[test]
    probabilities = predict(trained.network.whole, data.pixels, recipe.preprocessing, rows=test)
    group = data.group[test] if grouped else None
    metrics = measure(truth, probabilities, labels.positive, trained.threshold, group)
    if findings is not None:
        documents[FINDINGS] = json.dumps([asdict(finding) for finding in findings], indent=1) + "\n"
    learned = {image.sha256 for role in ("train", "validation") for image in record.of(role)}
    documents |= draw_report(
        trained.network,
        Images(data.pixels, test, truth),
        probabilities,
        metrics,
        trained.history,
        labels,
        recipe,
        compare=compare_with_published,
        threshold=trained.threshold,
        group=group,
        copies=sum(image.sha256 in learned for image in record.of("test")),
        facts=[
            ("Training", f"{len(job.train)} images, {len(job.validation)} for validation, seed {job.seed}"),
            ("Split", split_name),
            ("Data", f"SHA-256 of the images and their labels: {record.data_fingerprint[:16]}"),
        ],
    )
    write_bundle(
        out,
        trained.network,
        name=name,
        recipe=recipe,
        seed=job.seed,
        labels=labels,
        split=record,
        architecture=find_backbone(recipe.backbone).title,
        weights=weights,
        history=trained.history,
        probabilities=probabilities,
        metrics=metrics,
        threshold=trained.threshold,
        split_name=split_name,
        training_details=trained.details | {"grouping": data.grouping},
        out_of_distribution=fit_out_of_distribution(
            keras_features(trained.network.backbone, recipe.preprocessing),
            data.pixels,
            job.train,
            job.validation,
            job.seed,
            source=data.source,
        ),
        documents=documents,
        group=group,
        overwrite=overwrite,
    )
    return TrainedBundle(
        trained.network, labels, record, trained.history, truth, probabilities, metrics, trained.threshold
    )
