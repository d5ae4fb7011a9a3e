"""Cross-validate any recipe without leaks: no near-duplicate, patient or source is on both sides of a fold.

Every image is scored once, by a model that saw no image of its group. For a distillation, each fold trains a teacher
and students of several seeds, which are compared on the same images.

Answers are stored in the output folder, per fold and model, so that an interrupted run continues with the next one, and
so that several machines can train its folds and the folders can be merged. ``evaluation.crossval_record`` describes
the result, ``crossval.json``.
"""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_edge.authoring.provenance import current_provenance
from mri_edge.authoring.writer import check_outside
from mri_edge.bundles.split import Split
from mri_edge.errors import DataError, OutputError, UsageError
from mri_edge.inference.prediction import decide
from mri_edge.storage.atomic import atomic_write, fingerprint, make_folder
from mri_edge.storage.staging import locked_folder, locked_temp_folder
from mri_edge.train.data import duplicates
from mri_edge.train.data.audit import audit, check_groups
from mri_edge.train.data.collection import Collection, Indices, collect, store_bytes
from mri_edge.train.data.folder import Scan
from mri_edge.train.data.grouping import BLOCKS, parse_groups
from mri_edge.train.data.labels import Labels
from mri_edge.train.data.roles import (
    assign_roles,
    by_group,
    by_source,
    check_training_rows,
    grouped_folds,
    hold_out,
    may_train,
    near,
)
from mri_edge.train.data.selection import select
from mri_edge.train.evaluation.crossval_figures import Stress, figures_from, stress_figures
from mri_edge.train.evaluation.crossval_record import SCHEMA_VERSION, SINGLE, TEACHER, image_columns, to_json
from mri_edge.train.loops.checkpoint import check_space
from mri_edge.train.loops.distil import Pool, open_pool
from mri_edge.train.loops.progress import step_progress
from mri_edge.train.models.network import predict
from mri_edge.train.models.registry import find_backbone
from mri_edge.train.models.weights import BackboneWeights
from mri_edge.train.recipes.base import Distillation, FineTuning, HeadTraining, RecipeSpec
from mri_edge.train.recipes.registry import find_recipe
from mri_edge.train.transforms.mri import CHANGES

from .pipeline import feature_bytes
from .training import Job, Trained, draw_pool, pool_bytes, schedule_of, train_model

_MARK = "identity"  # file in the output folder that says which run it belongs to
# Space for two checkpoints, while the new one replaces the old one; for a distillation, those of its teacher.
_STATE_BYTES = {HeadTraining: 50_000_000, FineTuning: 700_000_000, Distillation: 600_000_000}


def cross_validate(
    data: Path,
    out: Path,
    recipe: RecipeSpec,
    *,
    folds: int | None,
    seed: int,
    backbone_weights: str = "auto",
    positive: str | None = None,
    labels: str | None = None,
    excluded: Sequence[str] = (),
    groups: str | Path | None = None,
    only: int | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Cross-validate ``recipe`` on the scans in ``data``; write ``out``/crossval.json and return its content.

    Answers that ``out`` contains are used, so repeating the call continues an interrupted run.

    Parameters
    ----------
    folds
        Number of folds that keep groups together; ``None`` leaves out one source at a time.
    positive, labels
        As ``positive`` and ``rule`` of ``data.labels.choose_labels``.
    groups
        As for ``data.grouping.parse_groups``; None means blocks of file numbers.
    only
        Train only this fold, counted from 1; the figures cover all folds in ``out``.
    overwrite
        Discard the answers in ``out``.

    Raises
    ------
    UsageError
        The fold does not exist, or another process is training it; ``out`` is in ``data`` or holds something else.
    DataError, WeightsError, OutputError
        The data, the weights or the output folder cannot be used. All are raised before training.
    """
    if folds is not None:
        _check_fold(only, folds)
    rule = parse_groups(BLOCKS if groups is None else groups)
    _check_out(out, data)
    selection = select(data, positive, excluded, rule, labels=labels, say=say)
    scans = selection.scans
    count = folds or len({scan.source for scan in scans})
    _check_fold(only, count)
    make_folder(out)
    weights = find_backbone(_trained_first(recipe).backbone).load_weights(backbone_weights, say)
    numbers = [only] if only else range(1, count + 1)
    _check_space(out, recipe, seed, scans, numbers, overwrite=overwrite)
    say(f"reading {len(scans)} scans")
    with locked_temp_folder(out, ".scans-") as store:
        collection = collect(
            scans,
            recipe.preprocessing,
            rule=rule,
            patients=selection.patients,
            store=store,
            with_slices=recipe.needs_slices,
        )
        audit(collection, rule, say)
        check_groups(collection, selection.labels.names, folds or 2)
        # The reference's split ignores patients, so if they are known, it excludes no images from training.
        keep_out = recipe.split.keep_apart and rule.patients is None
        trainable = may_train(collection) if keep_out else np.ones(len(scans), bool)
        _claim(
            out, _identity(recipe, collection, trainable, selection.labels, weights, folds, seed), overwrite=overwrite
        )
        record = score_folds(
            collection,
            trainable,
            weights,
            recipe,
            labels=selection.labels,
            folds=folds,
            seed=seed,
            store=out,
            only=only,
            left_out=selection.left_out,
        )
    record["patients"] = rule.patients.name if rule.patients else None
    atomic_write(out / "crossval.json", to_json(record))
    return record


def _check_out(out: Path, data: Path) -> None:
    """Raise UsageError if the output folder is in the data folder, or not empty and of no cross-validation."""
    check_outside(out, data)
    # A run that was killed early leaves a hidden folder only.
    if any(out.glob("[!.]*")) and not (out / _MARK).is_file():
        raise UsageError(
            f"{out}: folder is not empty and contains no cross-validation", "Name another folder with --out"
        )


def _check_space(
    out: Path, recipe: RecipeSpec, seed: int, scans: Sequence[Scan], numbers: Iterable[int], *, overwrite: bool
) -> None:
    """Raise OutputError unless the disk has space for the scans and for the training of these folds."""
    models = _models(recipe, seed)
    needed = store_bytes(scans, recipe.preprocessing, with_slices=recipe.needs_slices)
    unfinished = [number for number in numbers if overwrite or _missing(number, models, out)]
    if unfinished:
        needed += feature_bytes(recipe, len(scans)) + _STATE_BYTES[type(recipe.schedule)]
        # The views of every fold stay, so that other students can be trained on them.
        needed += sum(_must_teach(number, models, out) for number in unfinished) * pool_bytes(recipe)
    check_space(out, needed)


def _check_fold(only: int | None, folds: int) -> None:
    if only is not None and not 1 <= only <= folds:
        raise UsageError(f"--fold: there are folds 1 to {folds}. Received: {only}")


def score_folds(
    data: Collection,
    trainable: NDArray[np.bool_],
    weights: BackboneWeights | None,
    recipe: RecipeSpec,
    *,
    labels: Labels,
    folds: int | None,
    seed: int,
    store: Path,
    only: int | None = None,
    left_out: Sequence[Scan] = (),
) -> dict[str, Any]:
    """Score each fold by a model trained and calibrated on the other folds; return the record in plain types.

    Parameters
    ----------
    trainable
        bool (N,): False for images that are scored but never trained on.
    store
        Folder for the answers of finished folds and the state of the current fold.
    left_out
        Scans that the user excluded.
    """
    all_folds = _make_folds(data, trainable, recipe, folds, seed)
    models = _models(recipe, seed)
    jobs = {fold.number: Job(data, labels, fold.train, fold.validation, fold.held, weights, seed) for fold in all_folds}
    for fold in all_folds:
        if only in (None, fold.number):
            _complete_fold(fold, jobs[fold.number], recipe, models, store, f"fold {fold.number}/{len(all_folds)}")
    shape = len(data.scans), len(labels.names)
    probabilities = {name: np.zeros(shape) for name in models}
    called = {name: np.zeros(len(data.scans), np.intp) for name in models}
    fold_of = np.zeros(len(data.scans), np.intp)
    calibration: dict[str, list[dict[str, Any]]] = {name: [] for name in models}
    stress: dict[str, list[Stress]] = {name: [] for name in models}
    # Only now, because other processes may have finished their folds while this one trained.
    for fold in all_folds:
        if _missing(fold.number, models, store):
            continue
        fold_of[fold.held] = fold.number
        for name in models:
            answer = _read(_folder(store, fold.number) / f"{name}.npz")
            probabilities[name][fold.held], called[name][fold.held] = answer.probabilities, answer.called
            stress[name].append(answer.stress)
            calibration[name].append(
                {"fold": fold.number, "temperature": answer.temperature, "threshold": answer.threshold}
            )
    split, selectable = _bundle_split(data, recipe, labels, seed, left_out)
    record = {
        "schema_version": SCHEMA_VERSION,
        "recipe": recipe.name,
        "seed": seed,
        "protocol": "folds" if folds else "sources",
        "folds": len(all_folds),
        "folds_scored": np.unique(fold_of[fold_of > 0]).tolist(),
        "grouping": _describe_grouping(data, trainable),
        "labels": list(labels.names),
        "positive": labels.positive,
        "excluded": [scan.file for scan in left_out],
        "split_fingerprint": split.split_fingerprint if split else None,
        "schedule": schedule_of(recipe),
        "teacher": _describe_teacher(recipe, seed),
        "calibration": calibration,
        "images": image_columns(data, fold_of, selectable, probabilities, called),
    }
    return {
        **record,
        **figures_from(record),
        "stress": {
            name: stress_figures(parts, data.label, data.group, labels.positive) for name, parts in stress.items()
        },
        "creation": asdict(current_provenance()),
    }


@dataclass(frozen=True)
class Fold:
    """One fold: its number, from 1, and the rows to test, to train and to calibrate on."""

    number: int
    held: Indices
    train: Indices
    validation: Indices


def _make_folds(
    data: Collection, trainable: NDArray[np.bool_], recipe: RecipeSpec, folds: int | None, seed: int
) -> list[Fold]:
    rows = np.arange(len(data.scans))
    if folds is None:
        held_out = by_source(data.source, data.label)
    elif recipe.split.keep_apart:
        held_out = grouped_folds(data, rows, folds)
    else:
        held_out = by_group(data.label, data.group, folds, seed)
    made = []
    for number, held in enumerate(held_out, start=1):
        learn = rows[trainable & ~np.isin(data.group, data.group[held])]
        check_training_rows(data, learn, number)
        validation = np.empty(0, np.intp)
        if recipe.split.validation_folds:
            validation = learn[hold_out(data, learn, recipe.split.validation_folds, seed)]
        made.append(Fold(number, held, np.setdiff1d(learn, validation), validation))
    return made


def _models(recipe: RecipeSpec, seed: int) -> dict[str, tuple[RecipeSpec, int]]:
    """Return recipe and seed of each model that a fold trains; a teacher is the first."""
    if not isinstance(recipe.schedule, Distillation):
        return {SINGLE: (recipe, seed)}
    students = range(seed, seed + recipe.schedule.students)
    return {TEACHER: (_trained_first(recipe), seed)} | {f"student {number}": (recipe, number) for number in students}


def _trained_first(recipe: RecipeSpec) -> RecipeSpec:
    """Return the recipe of the teacher, or the recipe itself if it has none."""
    return find_recipe(recipe.schedule.teacher) if isinstance(recipe.schedule, Distillation) else recipe


# Answers of a fold: computed by training, or read from the store.


@dataclass(frozen=True)
class FoldAnswers:
    """One model's answers to the held-out images: probabilities (N, classes) and called labels (N,).

    With its temperature, threshold and stress tests.
    """

    probabilities: NDArray[np.float64]
    called: NDArray[np.intp]
    temperature: float | None
    threshold: float | None
    stress: Stress


def _complete_fold(
    fold: Fold,
    context: Job,
    recipe: RecipeSpec,
    models: dict[str, tuple[RecipeSpec, int]],
    store: Path,
    label: str,
) -> None:
    """Train the models without answers and store their answers.

    Raises UsageError if another process is training this fold.
    """
    folder = _folder(store, fold.number)
    if not _missing(fold.number, models, store):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with _fold_lock(folder):
        missing, pool = _missing(fold.number, models, store), None  # again: another process may just have finished
        if TEACHER in models and missing:
            pool = open_pool(folder)
            if _must_teach(fold.number, models, store):
                pool = _teach(context, recipe, models[TEACHER][0], folder, label)
                missing = [name for name in missing if name != TEACHER]
        for name in missing:
            model_recipe, seed = models[name]
            job = dataclasses.replace(
                context, seed=seed, store=folder, label=label if name == SINGLE else f"{label}, {name}"
            )
            trained = train_model(job, model_recipe, pool)
            _keep(folder / f"{name}.npz", trained, job, model_recipe, stress_tests=recipe.stress_tests)
            _clear_state(folder)


def _fold_lock(folder: Path) -> AbstractContextManager[None]:
    """Lock the folder of a fold while it is trained, so that two processes do not train it. Raises UsageError."""
    return locked_folder(
        folder,
        UsageError(
            f"{folder}: another process is training this fold", "Wait for it, or train another one: --fold NUMBER"
        ),
    )


def _teach(context: Job, recipe: RecipeSpec, teacher_recipe: RecipeSpec, folder: Path, label: str) -> Pool:
    """Train the teacher of a fold; store its answers and those to the pool."""
    job = dataclasses.replace(context, store=folder, label=f"{label}, teacher")
    trained = train_model(job, teacher_recipe)

    def ask(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return predict(trained.quick.whole, pixels, teacher_recipe.preprocessing)

    with step_progress(f"{label}, asking the teacher") as report:
        pool = draw_pool(job, recipe, ask, folder, report)
    _keep(folder / f"{TEACHER}.npz", trained, job, teacher_recipe, stress_tests=recipe.stress_tests)
    _clear_state(folder)
    return pool


def _keep(path: Path, trained: Trained, job: Job, recipe: RecipeSpec, *, stress_tests: bool) -> None:
    """Write the answers atomically, with those to the validation images, so that other rules can be tested later."""
    held, validation = (
        predict(trained.quick.whole, job.data.pixels, recipe.preprocessing, rows=rows)
        if len(rows)
        else np.empty((0, len(job.labels.names)), np.float32)
        for rows in (job.watched, job.validation)
    )
    stress = asdict(_stress(trained, job, recipe)) if stress_tests else {}
    content = io.BytesIO()
    np.savez(
        content,
        probabilities=held,
        called=decide(held.astype(np.float64), job.labels.positive, trained.threshold),
        temperature=np.nan if trained.temperature is None else trained.temperature,
        threshold=np.nan if trained.threshold is None else trained.threshold,
        validation=validation,
        validation_label=job.data.label[job.validation],
        **{f"stress_{name}": array for name, array in stress.items()},
        made_by=_made_by(recipe),
    )
    atomic_write(path, content.getbuffer())


def _read(path: Path) -> FoldAnswers:
    with np.load(path, allow_pickle=False) as kept:
        temperature, threshold = (
            None if np.isnan(kept[name]) else float(kept[name]) for name in ("temperature", "threshold")
        )
        return FoldAnswers(
            kept["probabilities"].astype(np.float64),
            kept["called"],
            temperature,
            threshold,
            Stress(*(kept[f"stress_{name}"] for name in ("rows", "probabilities", "called")))
            if "stress_rows" in kept
            else Stress.empty(),
        )


def _stress(trained: Trained, job: Job, recipe: RecipeSpec) -> Stress:
    """Score equally many held-out slices of each label under each change; none if a label has no slice in the fold."""
    data, labels = job.data, range(len(job.labels.names))
    rng = np.random.default_rng([job.seed, 2])
    # Highest index first: the order decides which slices are drawn.
    of_label = [job.watched[data.label[job.watched] == label] for label in sorted(labels, reverse=True)]
    count = min(len(rows) for rows in of_label)
    if count == 0:
        return Stress.empty()
    rows = np.concatenate([rng.choice(rows, count, replace=False) for rows in of_label])
    # One of the changes gives each slice the gray levels of a slice of another label.
    others = [data.slices[index].gray for index in np.roll(rows, count)]
    scores = []
    for change in (None, *CHANGES.values()):
        if change is None:
            pixels = data.pixels[rows]
        else:
            pairs = zip(rows, others, strict=True)
            changed = [change(data.slices[index], other, recipe.preprocessing) for index, other in pairs]
            pixels = np.stack(changed)[..., None].repeat(3, axis=-1)
        scores.append(predict(trained.quick.whole, pixels, recipe.preprocessing))
    called = [decide(score.astype(np.float64), job.labels.positive, trained.threshold) for score in scores]
    return Stress(rows, np.stack(scores), np.stack(called))


def _folder(store: Path, number: int) -> Path:
    return store / f"fold-{number}"


def _missing(number: int, models: dict[str, tuple[RecipeSpec, int]], store: Path) -> list[str]:
    """Return the models without stored answers, or with answers of another recipe or an older version."""

    def is_kept(name: str, recipe: RecipeSpec) -> bool:
        path = _folder(store, number) / f"{name}.npz"
        if not path.is_file():
            return False
        with np.load(path, allow_pickle=False) as kept:
            return "probabilities" in kept and str(kept["made_by"]) == _made_by(recipe)

    return [name for name, (recipe, _) in models.items() if not is_kept(name, recipe)]


def _must_teach(number: int, models: dict[str, tuple[RecipeSpec, int]], store: Path) -> bool:
    """Return whether a teacher must be trained before the missing students."""
    missing = _missing(number, models, store)
    return bool(missing) and (TEACHER in missing or open_pool(_folder(store, number)) is None)


def _clear_state(folder: Path) -> None:
    for path in (*folder.glob("checkpoint*.npz"), folder / "validation.npy"):
        path.unlink(missing_ok=True)


# A run is identified by values without field names, so that renaming a field does not discard finished folds.


def _made_by(recipe: RecipeSpec) -> str:
    student = find_backbone(recipe.backbone).student
    architecture = student.architecture(recipe) if student else None
    return fingerprint([json.dumps([_values(recipe), architecture])])


def _values(recipe: RecipeSpec) -> list[Any]:
    return list(dataclasses.astuple(dataclasses.replace(recipe, summary="")))


def _identity(
    recipe: RecipeSpec,
    data: Collection,
    trainable: NDArray[np.bool_],
    labels: Labels,
    weights: BackboneWeights,
    folds: int | None,
    seed: int,
) -> str:
    """Hash everything that determines the folds and the models; the students of a finished run may change."""
    schedule = recipe.schedule
    facts: list[Any] = [_values(_trained_first(recipe)), folds, seed, weights.sha256, labels.names, labels.positive]
    if isinstance(schedule, Distillation):
        pool = (recipe.preprocessing, recipe.transforms, recipe.split)
        facts += [schedule.pool_views, schedule.batch, *map(astuple, pool)]
    rows = zip(data.scans, data.group.tolist(), trainable.tolist(), strict=True)
    images = (f"{scan.file}\0{scan.sha256}\0{scan.label}\0{group}\0{may}" for scan, group, may in rows)
    return fingerprint([json.dumps(facts), *images])


def _claim(out: Path, identity: str, *, overwrite: bool) -> None:
    """Mark the folder as belonging to this run, and with ``overwrite`` discard what it contains.

    Raises OutputError if it contains another run, and UsageError if a fold to discard is being trained.
    """
    mark = out / _MARK
    if mark.is_file() and overwrite:
        folders = sorted(out.glob("fold-*"))
        with ExitStack() as locks:
            for folder in folders:
                locks.enter_context(_fold_lock(folder))
            (out / "crossval.json").unlink(missing_ok=True)
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
    elif mark.is_file() and mark.read_text(encoding="utf-8") != identity:
        raise OutputError(
            f"{out}: contains a cross-validation with other data, positive label, groups, recipe, seed or folds",
            "Choose another folder with --out, or replace it with --overwrite",
        )
    atomic_write(mark, identity)


# Parts of the record.


def _bundle_split(
    data: Collection, recipe: RecipeSpec, labels: Labels, seed: int, left_out: Sequence[Scan]
) -> tuple[Split | None, NDArray[np.bool_]]:
    """Return the split of a bundle trained without ``--groups``, and which images (N,) may choose its threshold.

    The images that test the bundle, and images near them, may not. If the data cannot be split, there is no bundle, and
    only the reference's test images are excluded.
    """
    plain = dataclasses.replace(data, group=duplicates.groups(data.hashes))
    try:
        split = assign_roles(plain, recipe.split, "reference", labels.names, left_out, seed)
    except DataError:
        return None, may_train(data)
    roles = np.array([image.role for image in split.images[: len(data.scans)]])
    return split, ~near(data, np.flatnonzero(roles == "test"))


def _describe_grouping(data: Collection, trainable: NDArray[np.bool_]) -> str:
    """Describe what no fold divides, and whether some images (N,) were excluded from training in every fold."""
    return data.grouping if trainable.all() else f"{data.grouping}; test images and their neighbors train nothing"


def _describe_teacher(recipe: RecipeSpec, seed: int) -> dict[str, Any] | None:
    teacher = _trained_first(recipe)
    return None if teacher is recipe else {"recipe": teacher.name, "schedule": schedule_of(teacher), "seed": seed}
