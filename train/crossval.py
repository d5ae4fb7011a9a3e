"""Cross-validate any recipe without leaks: no near-duplicate, patient or source is on both sides of a fold.

Every image is scored once, by a model that saw neither the image nor a near-duplicate of it. For a distillation, each
fold trains a teacher and students of several seeds, which are compared on the same images.

Answers are stored per fold and model, so that an interrupted run continues with the next one. For a distillation they
stay in the output folder, so that several machines can train its folds and the folders can be merged.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_edge.authoring.labels import KNOWN_LABELS
from mri_edge.authoring.provenance import current_provenance
from mri_edge.bundles.split import Split
from mri_edge.errors import OutputError, UsageError
from mri_edge.inference.prediction import decide
from mri_edge.storage.atomic import atomic_write, fingerprint, make_folder
from mri_edge.train.data.collection import Collection, Indices, collect, store_bytes
from mri_edge.train.data.duplicates import inspect, table
from mri_edge.train.data.folder import Labels, Selection, select
from mri_edge.train.data.roles import by_group, by_source, choose_roles, grouped_folds, hold_out, may_train
from mri_edge.train.evaluation.crossval_figures import Answers, Stress, compare_students, figures, stress_figures
from mri_edge.train.loops.checkpoint import check_space, work_folder
from mri_edge.train.loops.distil import Pool, open_pool
from mri_edge.train.loops.finetune import fast_precision
from mri_edge.train.loops.progress import step_progress
from mri_edge.train.models.network import predict
from mri_edge.train.models.registry import find_backbone
from mri_edge.train.models.weights import BackboneWeights
from mri_edge.train.recipes.base import Distillation, FineTuning, HeadTraining, RecipeSpec
from mri_edge.train.recipes.registry import find_recipe
from mri_edge.train.transforms.mri import CHANGES

from .pipeline import feature_bytes
from .training import Job, Trained, draw_pool, pool_bytes, schedule_of, train_model

SCHEMA_VERSION = 1
TEACHER, SINGLE = "teacher", "model"
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
    excluded: Sequence[str] = (),
    groups: Path | None = None,
    only: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Cross-validate ``recipe`` on the scans in ``data``; write ``out``/crossval.json and return its content.

    Parameters
    ----------
    folds
        Number of folds that keep near-duplicates and patients together; ``None`` leaves out one source at a time.
    only
        For a distillation, train only this fold, counted from 1; the figures cover all folds in ``out``.
    overwrite, resume
        As for ``pipeline.train_bundle``; a distillation always continues with the answers in ``out``.

    Raises
    ------
    UsageError
        The fold does not exist, or a distillation is to be cross-validated by source.
    DataError, WeightsError, OutputError
        The data, the weights or the output folder cannot be used. All are raised before training.
    """
    distilled = isinstance(recipe.schedule, Distillation)
    if distilled and folds is None:
        raise UsageError(f"recipe {recipe.name!r} cannot be cross-validated by source", "Use --cv 3")
    if only is not None and not 1 <= only <= (folds or 0):
        raise UsageError(f"--fold: there are folds 1 to {folds}. Received: {only}")
    make_folder(out)
    selection = select(data, positive, excluded, groups)
    scans, labels = selection.scans, selection.labels
    weights = find_backbone(_trained_first(recipe).backbone).load_weights(backbone_weights, say)
    if distilled:
        _claim(out, _identity(recipe, selection, weights, folds, seed))
        store = out
    else:
        facts = [repr(recipe), seed, folds, weights.sha256, *selection.facts()]
        if isinstance(recipe.schedule, FineTuning):
            facts.insert(0, fast_precision())
        store = work_folder(out, facts, overwrite=overwrite, resume=resume)
        needed = store_bytes(scans, recipe.preprocessing, with_slices=recipe.needs_slices)
        check_space(store, needed + feature_bytes(recipe, len(scans)) + _STATE_BYTES[type(recipe.schedule)])
    say(f"reading {len(scans)} scans")
    collection = collect(
        scans,
        recipe.preprocessing,
        patients=selection.patients,
        store=None if distilled else store,
        with_slices=recipe.needs_slices,
    )
    if findings := inspect(scans, collection.hashes):
        say(table(scans, findings))
    # The reference's split ignores patients, so if they are known, it excludes no images from training.
    keep_out = recipe.split.keep_apart and groups is None
    trainable = may_train(collection) if keep_out else np.ones(len(scans), bool)
    record = score_folds(
        collection, trainable, weights, recipe, labels=labels, folds=folds, seed=seed, store=store, only=only
    )
    record["patients"] = groups.name if groups else None
    record["excluded"] = [scan.file for scan in selection.left_out]
    atomic_write(out / "crossval.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
    if not distilled:
        shutil.rmtree(store, ignore_errors=True)
    return record


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
) -> dict[str, Any]:
    """Score each fold by a model trained and calibrated on the other folds; return the record in plain types.

    Parameters
    ----------
    trainable
        bool (N,): False for images that are scored but never trained on.
    store
        Folder for the answers of finished folds and the state of the current fold.
    """
    split = choose_roles(data) if isinstance(recipe.schedule, Distillation) else None
    all_folds = _make_folds(data, trainable, recipe, folds, seed)
    models = _models(recipe, seed)
    pending = [fold for fold in all_folds if only in (None, fold.number)]
    if isinstance(recipe.schedule, Distillation):
        untaught = sum(_must_teach(fold, models, store) for fold in pending)
        check_space(store, untaught * pool_bytes(recipe) + (_STATE_BYTES[Distillation] if untaught else 0))
    answers = {name: Answers.empty(len(data.scans)) for name in models}
    fold_of = np.zeros(len(data.scans), int)
    by_fold = []
    stress: dict[str, list[Stress]] = {name: [] for name in models}
    for fold in all_folds:
        if fold not in pending and _missing(fold, models, store):
            continue
        context = Job(data, labels, fold.train, fold.validation, fold.held, weights, seed)
        found = _fold_answers(fold, context, recipe, models, store, f"fold {fold.number}/{len(all_folds)}")
        fold_of[fold.held] = fold.number
        for name, answer in found.items():
            answers[name].positive[fold.held], answers[name].called[fold.held] = answer.positive, answer.called
            stress[name].append(answer.stress)
        by_fold.append(
            {
                "fold": fold.number,
                "models": {
                    name: {
                        "temperature": answer.temperature,
                        "threshold": answer.threshold,
                        **figures(data, fold.held, labels.positive, *answers[name].columns()),
                    }
                    for name, answer in found.items()
                },
            }
        )
    scored = np.flatnonzero(fold_of)
    return {
        "schema_version": SCHEMA_VERSION,
        "recipe": recipe.name,
        "seed": seed,
        "folds": folds,
        "folds_scored": np.unique(fold_of[scored]).tolist(),
        "labels": list(labels.names),
        "positive": labels.positive,
        "split_fingerprint": split.split_fingerprint if split else None,
        "grouping": _describe_grouping(folds, trainable),
        "schedule": schedule_of(recipe),
        "teacher": _describe_teacher(recipe, seed),
        "pooled": {name: figures(data, scored, labels.positive, *model.columns()) for name, model in answers.items()},
        "by_fold": by_fold,
        "stress": {name: stress_figures(parts, data.label == labels.positive) for name, parts in stress.items()},
        **(_compare(data, labels, answers, fold_of, split) if split else {}),
        "images": [
            {
                "file": scan.file,
                "label": scan.label,
                "fold": int(fold_of[index]),
                "positive": {name: float(model.positive[index]) for name, model in answers.items()},
                "called": {name: int(model.called[index]) for name, model in answers.items()},
            }
            for index, scan in enumerate(data.scans)
            if fold_of[index]
        ],
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
        validation = np.empty(0, np.intp)
        if recipe.split.validation_folds:
            validation = learn[hold_out(data, learn, recipe.split.validation_folds)]
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
    """One model's answers to the held-out images (N,), with its temperature, threshold and stress tests."""

    positive: NDArray[np.float64]
    called: NDArray[np.intp]
    temperature: float | None
    threshold: float | None
    stress: Stress


def _fold_answers(
    fold: Fold,
    context: Job,
    recipe: RecipeSpec,
    models: dict[str, tuple[RecipeSpec, int]],
    store: Path,
    label: str,
) -> dict[str, FoldAnswers]:
    """Return the answers of each model, training those that are missing."""
    folder = _folder(store, fold)
    missing = _missing(fold, models, store)
    pool = None
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
    if TEACHER in models and missing:
        pool = open_pool(folder)
        if _must_teach(fold, models, store):
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
    return {name: _read(folder / f"{name}.npz") for name in models}


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
    """Write the answers atomically, with the validation scores, so that other threshold rules can be tested later."""
    positive = job.labels.positive
    held, validation = (
        predict(trained.quick.whole, job.data.pixels, recipe.preprocessing, rows=rows) if len(rows) else None
        for rows in (job.watched, job.validation)
    )
    assert held is not None  # noqa: S101 (a fold is never empty)
    called = decide(held.astype(np.float64), positive, trained.threshold)
    stress = asdict(_stress(trained, job, recipe)) if stress_tests else {}
    partial = path.with_name(f".{path.name}")
    np.savez(
        partial,
        positive=held[:, positive],
        called=called,
        temperature=np.nan if trained.temperature is None else trained.temperature,
        threshold=np.nan if trained.threshold is None else trained.threshold,
        validation=np.empty(0, np.float32) if validation is None else validation[:, positive],
        validation_is_positive=job.data.label[job.validation] == positive,
        **{f"stress_{name}": array for name, array in stress.items()},
        made_by=_made_by(recipe),
    )
    partial.replace(path)


def _read(path: Path) -> FoldAnswers:
    with np.load(path, allow_pickle=False) as kept:
        temperature, threshold = (
            None if np.isnan(kept[name]) else float(kept[name]) for name in ("temperature", "threshold")
        )
        return FoldAnswers(
            kept["positive"].astype(np.float64),
            kept["called"],
            temperature,
            threshold,
            Stress(*(kept[f"stress_{name}"] for name in ("rows", "positive", "called")))
            if "stress_rows" in kept
            else Stress.empty(),
        )


def _stress(trained: Trained, job: Job, recipe: RecipeSpec) -> Stress:
    """Score as many positive as negative held-out slices under each change; none if the fold has only one class."""
    data, positive = job.data, job.labels.positive
    rng = np.random.default_rng([job.seed, 2])
    is_positive = data.label[job.watched] == positive
    count = min(np.count_nonzero(is_positive), np.count_nonzero(~is_positive))
    if count == 0:
        return Stress.empty()
    rows = np.concatenate([rng.choice(job.watched[kind], count, replace=False) for kind in (is_positive, ~is_positive)])
    # One of the changes gives each slice the gray levels of a slice of the other class.
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
    called = [decide(score.astype(np.float64), positive, trained.threshold) == positive for score in scores]
    return Stress(rows, np.stack([score[:, positive] for score in scores]), np.stack(called))


def _folder(store: Path, fold: Fold) -> Path:
    return store / f"fold-{fold.number}"


def _missing(fold: Fold, models: dict[str, tuple[RecipeSpec, int]], store: Path) -> list[str]:
    """Return the models without stored answers, or with answers of another recipe."""

    def is_kept(name: str, recipe: RecipeSpec) -> bool:
        path = _folder(store, fold) / f"{name}.npz"
        if not path.is_file():
            return False
        with np.load(path, allow_pickle=False) as kept:
            return str(kept["made_by"]) == _made_by(recipe)

    return [name for name, (recipe, _) in models.items() if not is_kept(name, recipe)]


def _must_teach(fold: Fold, models: dict[str, tuple[RecipeSpec, int]], store: Path) -> bool:
    """Return whether a teacher must be trained before the missing students."""
    missing = _missing(fold, models, store)
    return bool(missing) and (TEACHER in missing or open_pool(_folder(store, fold)) is None)


def _clear_state(folder: Path) -> None:
    for name in ("checkpoint.npz", "validation.npy"):
        (folder / name).unlink(missing_ok=True)


# A run is identified by values without field names, so that renaming a field does not discard finished folds.


def _made_by(recipe: RecipeSpec) -> str:
    student = find_backbone(recipe.backbone).student
    architecture = student.architecture(recipe) if student else None
    return fingerprint([json.dumps([_values(recipe), architecture])])


def _values(recipe: RecipeSpec) -> list[Any]:
    return list(dataclasses.astuple(dataclasses.replace(recipe, summary="")))


def _identity(recipe: RecipeSpec, selection: Selection, weights: BackboneWeights, folds: int | None, seed: int) -> str:
    """Hash everything that determines teachers and pools; the students of a finished run may change."""
    schedule = recipe.schedule
    assert isinstance(schedule, Distillation)  # noqa: S101 (for the type checker)
    facts: list[Any] = [_values(_trained_first(recipe)), schedule.pool_views, schedule.batch]
    facts += [folds, seed, weights.sha256]
    if (selection.labels.names, selection.labels.positive) != (KNOWN_LABELS, 1):
        facts.append(selection.labels.names[selection.labels.positive])
    images = (f"{scan.file}\0{scan.sha256}\0{scan.label}" for scan in selection.scans)
    return fingerprint([json.dumps(facts), *images])


def _claim(out: Path, identity: str) -> None:
    """Mark the folder as belonging to this run. Raises OutputError if it contains another run."""
    mark = out / "identity"
    if mark.is_file() and mark.read_text(encoding="utf-8") != identity:
        raise OutputError(
            f"{out}: contains a cross-validation with other data, positive label, recipe, seed or folds",
            "Choose another folder with --out",
        )
    atomic_write(mark, identity)


# Parts of the record.


def _describe_grouping(folds: int | None, trainable: NDArray[np.bool_]) -> str:
    """Describe what no fold divides, and whether some images (N,) were excluded from training in every fold."""
    by = "near-duplicates" if folds else "sources"
    return by if trainable.all() else f"{by}; test images and their neighbours train nothing"


def _describe_teacher(recipe: RecipeSpec, seed: int) -> dict[str, Any] | None:
    teacher = _trained_first(recipe)
    return None if teacher is recipe else {"recipe": teacher.name, "schedule": schedule_of(teacher), "seed": seed}


def _compare(
    data: Collection, labels: Labels, answers: dict[str, Answers], fold_of: NDArray[np.int_], split: Split
) -> dict[str, Any]:
    # Exclude test images from threshold selection, because the threshold may go into the bundle that they test.
    selectable = np.isin([image.role for image in split.images[: len(data.scans)]], ("train", "validation"))
    return compare_students(data, labels.positive, answers, TEACHER, fold_of, selectable)
