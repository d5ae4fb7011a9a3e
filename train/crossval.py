"""Leak-free cross-validation of the robust recipe: whole near-duplicate groups change sides together.

The reference's test images and their near-duplicates are scored like all others, and train nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from .backbone import BackboneWeights
from .data import Labels
from .finetune import Plan
from .metrics import auc, share
from .recipe import Recipe
from .robust import Collection, Indices, Report, grouped_folds, hold_out, predict, train_robust


def cross_validate(
    data: Collection,
    trainable: NDArray[np.bool_],
    weights: BackboneWeights | None,
    recipe: Recipe,
    plan: Plan,
    *,
    labels: Labels,
    folds: int,
    seed: int,
    sensitivity: float = 0.95,
    report_of: Callable[[int], Report] = lambda fold: lambda done, total, loss: None,
) -> dict[str, Any]:
    """Train once for each fold on the others, calibrate within those, score the fold.

    Parameters
    ----------
    trainable
        bool (N,): False for images that may be scored and never trained on.
    sensitivity
        Where the false positive rate is read off the ROC curve.

    Returns
    -------
    Plain types: pooled figures with intervals, figures of each fold, one entry an image.
    """
    everyone = np.arange(len(data.scans))
    positive = np.zeros(len(everyone), np.float64)
    called = np.zeros(len(everyone), bool)
    fold_of = np.zeros(len(everyone), int)
    by_fold = []
    for fold, held in enumerate(grouped_folds(data, everyone, folds), start=1):
        learn = np.setdiff1d(everyone[trainable], held)
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
        )
        positive[held] = predict(trained.network.whole, data.pixels[held], recipe.preprocessing)[:, labels.positive]
        called[held] = positive[held] >= trained.threshold
        fold_of[held] = fold
        by_fold.append(
            {
                "temperature": trained.temperature,
                "threshold": trained.threshold,
                **figures(data, held, labels.positive, positive, called, sensitivity),
            }
        )
    return {
        "recipe": recipe.name,
        "seed": seed,
        "folds": folds,
        "grouping": "near-duplicates, and test images and their neighbours never trained on",
        "plan": asdict(plan),
        "pooled": figures(data, everyone, labels.positive, positive, called, sensitivity),
        "by_fold": by_fold,
        "images": [
            {"file": scan.file, "label": scan.label, "fold": int(fold_of[index]), "positive": float(positive[index])}
            for index, scan in enumerate(data.scans)
        ],
    }


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
    tumours found first reaches ``sensitivity``.
    """
    ill = data.label[chosen] == positive_label
    score, said = positive[chosen], called[chosen]
    false_positive, true_positive, _ = roc_curve(ill, score, drop_intermediate=False)
    at = int(np.argmax(true_positive >= sensitivity))
    right = said == ill
    folder = np.array([data.scans[index].folder for index in chosen])
    source = data.source[chosen]
    return {
        "auc": asdict(auc(ill, score)),
        "false_positive_rate_at_sensitivity": asdict(
            share(round(false_positive[at] * (~ill).sum()), int((~ill).sum()))
        ),
        "accuracy": asdict(share(int(right.sum()), len(right))),
        "sensitivity": asdict(share(int(right[ill].sum()), int(ill.sum()))),
        "specificity": asdict(share(int(right[~ill].sum()), int((~ill).sum()))),
        "right_by_folder": {
            one: asdict(share(int(right[folder == one].sum()), int((folder == one).sum())))
            for one in np.unique(folder).tolist()
        },
        "auc_by_source": {
            one: asdict(auc(ill[source == one], score[source == one])) for one in np.unique(source).tolist()
        },
    }
