"""Leak-free cross-validation of the robust recipe: by groups of near-duplicates, or by source.

The reference's test images and their near-duplicates, where they are in the data, are scored like all others and
train nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from mri_edge.train.data.folder import Labels
from mri_edge.train.data.folds import by_source
from mri_edge.train.evaluation.auc import auc, both_kinds
from mri_edge.train.evaluation.metrics import share
from mri_edge.train.loops.checkpoint import kept
from mri_edge.train.loops.finetune import Plan
from mri_edge.train.models.weights import BackboneWeights
from mri_edge.train.recipes.base import Recipe
from mri_edge.train.recipes.robust import (
    Collection,
    Indices,
    Report,
    Trained,
    grouped_folds,
    hold_out,
    predict,
    train_robust,
)
from mri_edge.train.transforms.shifts import CHANGES


def cross_validate(
    data: Collection,
    trainable: NDArray[np.bool_],
    weights: BackboneWeights | None,
    recipe: Recipe,
    plan: Plan,
    *,
    labels: Labels,
    folds: int | None,
    seed: int,
    sensitivity: float = 0.95,
    report_of: Callable[[int], Report] = lambda fold: lambda done, total, loss: None,
    store: Path | None = None,
) -> dict[str, Any]:
    """Train once for each fold on the others, calibrate within those, score the fold in the training's precision.

    Parameters
    ----------
    folds
        Number of folds; ``None`` leaves out one source at a time.
    trainable
        bool (N,): False for images that may be scored and never trained on.
    sensitivity
        Where the false positive rate is read off the ROC curve.
    store
        Folder that holds each finished fold, and the state of the one at work: what is there is not done again.

    Returns
    -------
    Plain types: pooled figures with intervals, figures of each fold, one entry an image.
    """
    everyone = np.arange(len(data.scans))
    positive = np.zeros(len(everyone), np.float64)
    called = np.zeros(len(everyone), bool)
    fold_of = np.zeros(len(everyone), int)
    by_fold = []
    stressed: dict[str, list[tuple[bool, float, bool]]] = {}
    held_out = grouped_folds(data, everyone, folds) if folds else by_source(data.source, data.label)
    for fold, held in enumerate(held_out, start=1):
        checkpoint = store / f"fold-{fold}.npz" if store else None

        def train_and_ask(
            fold: int = fold, held: Indices = held, checkpoint: Path | None = checkpoint
        ) -> dict[str, Any]:
            learn = everyone[trainable & ~np.isin(data.group, data.group[held])]
            validation = learn[hold_out(data, learn)]
            trained = train_robust(
                data,
                np.setdiff1d(learn, validation),
                validation,
                weights,
                recipe,
                plan,
                labels=labels,
                seed=seed,
                report=report_of(fold),
                checkpoint=checkpoint,
            )
            answers = predict(trained.quick.whole, data.pixels, recipe.preprocessing, rows=held)
            scores = answers[:, labels.positive].astype(np.float64)
            return {
                "temperature": trained.temperature,
                "threshold": trained.threshold,
                "positive": scores.tolist(),
                "called": (scores >= trained.threshold).tolist(),
                "stress": _under_stress(trained, data, held, recipe, labels, seed),
            }

        answer = kept(store / f"fold-{fold}.json" if store else None, train_and_ask)
        if checkpoint:
            checkpoint.unlink(missing_ok=True)
        positive[held], called[held], fold_of[held] = answer["positive"], answer["called"], fold
        for change, answers in answer["stress"].items():
            stressed.setdefault(change, []).extend(answers)
        by_fold.append(
            {
                "temperature": answer["temperature"],
                "threshold": answer["threshold"],
                **figures(data, held, labels.positive, positive, called, sensitivity),
            }
        )
    return {
        "recipe": recipe.name,
        "seed": seed,
        "folds": folds,
        "labels": list(labels.names),
        "positive": labels.positive,
        "grouping": grouping("near-duplicates" if folds else "sources", trainable),
        "plan": asdict(plan),
        "pooled": figures(data, everyone, labels.positive, positive, called, sensitivity),
        "by_fold": by_fold,
        "stress": {change: _stress_figures(answers) for change, answers in stressed.items()},
        "images": [
            {"file": scan.file, "label": scan.label, "fold": int(fold_of[index]), "positive": float(positive[index])}
            for index, scan in enumerate(data.scans)
        ],
    }


def grouping(by: str, trainable: NDArray[np.bool_]) -> str:
    """For the record: what no fold divides, and whether images (N,) were kept from training in every fold."""
    return by if trainable.all() else f"{by}; test images and their neighbours train nothing"


def figures(
    data: Collection,
    chosen: Indices,
    positive_label: int,
    positive: NDArray[np.float64],
    called: NDArray[np.bool_],
    sensitivity: float,
) -> dict[str, Any]:
    """AUC, accuracy, sensitivity, specificity at the folds' own thresholds, and per class folder; plain types.

    ``false_positive_rate_at_sensitivity`` is the share of healthy slices called tumour where the share of
    tumours found first reaches ``sensitivity``. What images of one kind alone cannot tell is left out. Intervals of
    AUC hold for groups of near-duplicates, those of shares take images for independent.
    """
    ill = data.label[chosen] == positive_label
    score, said, group = positive[chosen], called[chosen], data.group[chosen]
    right = said == ill
    folder = np.array([data.scans[index].folder for index in chosen])
    source = data.source[chosen]
    found = {}
    if both_kinds(ill):
        false_positive, true_positive, _ = roc_curve(ill, score, drop_intermediate=False)
        at = int(np.argmax(true_positive >= sensitivity))
        found["auc"] = asdict(auc(ill, score, group))
        found["false_positive_rate_at_sensitivity"] = asdict(
            share(round(false_positive[at] * (~ill).sum()), int((~ill).sum()))
        )
    kinds = {"accuracy": np.ones(len(ill), bool), "sensitivity": ill, "specificity": ~ill}
    found |= {
        name: asdict(share(int(right[kind].sum()), int(kind.sum()))) for name, kind in kinds.items() if kind.any()
    }
    found["right_by_folder"] = {
        one: asdict(share(int(right[folder == one].sum()), int((folder == one).sum())))
        for one in np.unique(folder).tolist()
    }
    parts = {one: source == one for one in np.unique(source).tolist()}
    found["auc_by_source"] = {
        one: asdict(auc(ill[part], score[part], group[part])) for one, part in parts.items() if both_kinds(ill[part])
    }
    return found


def _under_stress(
    trained: Trained, data: Collection, held: Indices, recipe: Recipe, labels: Labels, seed: int
) -> dict[str, list[tuple[bool, float, bool]]]:
    """For each change: (is positive, score, called positive) of as many slices of either kind in ``held``.

    Empty where ``held`` has slices of one kind alone.
    """
    rng = np.random.default_rng([seed, 2])
    ill = data.label[held] == labels.positive
    least = min(np.count_nonzero(ill), np.count_nonzero(~ill))
    if least == 0:
        return {}
    chosen = np.concatenate([rng.choice(held[kind], least, replace=False) for kind in (ill, ~ill)])
    truth = data.label[chosen] == labels.positive
    # Each meets the greys of one of the other kind.
    others = [data.slices[index].grey for index in np.roll(chosen, least)]
    answers = {}
    for name, change in {"none": None, **CHANGES}.items():
        if change is None:
            pixels = data.pixels[chosen]
        else:
            pairs = zip(chosen, others, strict=True)
            greys = [change(data.slices[index], other, recipe.preprocessing) for index, other in pairs]
            pixels = np.stack(greys)[..., None].repeat(3, axis=-1)
        scores = predict(trained.quick.whole, pixels, recipe.preprocessing)[:, labels.positive]
        answers[name] = [
            (bool(sick), float(score), bool(score >= trained.threshold))
            for sick, score in zip(truth, scores, strict=True)
        ]
    return answers


def _stress_figures(answers: Sequence[tuple[bool, float, bool]]) -> dict[str, Any]:
    ill, score, called = (np.array(column) for column in zip(*answers, strict=True))
    return {
        "auc": asdict(auc(ill, score)),
        "sensitivity": asdict(share(int(called[ill].sum()), int(ill.sum()))),
        "specificity": asdict(share(int((~called[~ill]).sum()), int((~ill).sum()))),
    }
