"""Draw random views of training scans, balanced over classes and sources."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.train.recipes.base import ScanViews
from mri_edge.train.transforms import mri
from mri_edge.train.transforms.lesions import draw_lesion

from .collection import Collection, Indices
from .labels import Labels

ROUND_IMAGES = 2048  # draws in which every image is shown as often as its weight requires

ViewsOf = Callable[[int], tuple[NDArray[np.uint8], Indices]]


def view_maker(
    data: Collection,
    train: Indices,
    preprocessing: Preprocessing,
    transforms: ScanViews,
    *,
    steps: int,
    batch: int,
    labels: Labels,
    seed: int,
) -> ViewsOf:
    """Make random views of the images ``train``, balanced over classes and sources.

    Returns
    -------
    A function of the step, from 0 to ``steps`` - 1, that returns ``batch`` gray views uint8 (N, height, width) and
    their label indices (N,). Its result depends only on the step and the seed.
    """
    order = train[
        balanced_draws(
            data.label[train],
            data.source[train],
            steps * batch,
            np.random.default_rng([seed, 0]),
            exponent=transforms.source_exponent,
        )
    ]
    # With more than two classes, a drawn lesion belongs to none of the tumor labels.
    draws_lesions = len(labels.names) == 2 and labels.positive is not None
    healthy_order = order[data.label[order] != labels.positive] if draws_lesions else order

    def views_of(step: int) -> tuple[NDArray[np.uint8], Indices]:
        rng = np.random.default_rng([seed, 1, step])
        chosen = order[step * batch : (step + 1) * batch]
        views = []
        for index in chosen:
            with_lesion = (
                draws_lesions and data.label[index] == labels.positive and rng.random() < transforms.lesion_probability
            )
            views.append(
                mri.augment(
                    rng,
                    data.slices[rng.choice(healthy_order) if with_lesion else index],
                    data.slices[rng.choice(train)].gray,
                    preprocessing,
                    draw_lesion if with_lesion else None,
                    transforms,
                )
            )
        return np.stack(views), data.label[chosen]

    return views_of


def balanced_draws(
    label: Indices,
    source: NDArray[np.str_],
    count: int,
    rng: np.random.Generator,
    *,
    exponent: float,
) -> Indices:
    """Choose which images to show, in order: positions (count,).

    Every class is shown equally often, and every class draws its sources in the same proportions, so that the source
    says nothing about the label. The weight of a source is the size of its rarer class to the power of ``exponent``:
    with 0.5, a small source contributes without being memorized. In each round of ``ROUND_IMAGES`` the count of an
    image matches its weight to within one (systematic sampling).
    """
    weight_of_source = {
        name: min(np.unique(label[source == name], return_counts=True)[1]) ** exponent for name in np.unique(source)
    }
    weight = np.zeros(len(label))
    for name, class_index in {(s, c) for s, c in zip(source.tolist(), label.tolist(), strict=True)}:
        cell = (source == name) & (label == class_index)
        weight[cell] = weight_of_source[name] / cell.sum()
    for class_index in np.unique(label):
        weight[label == class_index] /= weight[label == class_index].sum()
    draws: list[Indices] = []
    for start in range(0, count, ROUND_IMAGES):
        turn = rng.permutation(len(label))
        reach = np.cumsum(weight[turn])
        points = (np.arange(ROUND_IMAGES) + rng.random()) / ROUND_IMAGES * reach[-1]
        one_round = turn[np.minimum(np.searchsorted(reach, points), len(turn) - 1)]
        draws.append(rng.permutation(one_round)[: count - start])
    return np.concatenate(draws)
