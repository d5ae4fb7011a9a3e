"""Make the folds of a cross-validation: groups that no fold divides, or one source at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from mri_edge.errors import DataError

Indices = NDArray[np.intp]


def by_group(kind: NDArray[np.generic], group: Indices, folds: int, seed: int = 0) -> list[Indices]:
    """Return the positions that each fold holds out: whole groups, each kind of image (N,) as balanced as they allow.

    Raises
    ------
    DataError
        A kind has fewer groups than there are folds.
    """
    fewest = min(len(np.unique(group[kind == name])) for name in np.unique(kind))
    if fewest < folds:
        raise DataError(
            f"a class has {fewest} distinct slices, or patients, left to choose from: too few for {folds} folds",
            "Give more of that class, or ask for fewer folds",
        )
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return [held for _, held in splitter.split(kind, kind, group)]


def by_source(source: NDArray[np.str_], label: Indices) -> list[Indices]:
    """Return the positions of each source's images (N,) as one fold, in alphabetical order.

    Raises
    ------
    DataError
        There is only one source, or without some source a label has no image to learn from.
    """
    names = np.unique(source).tolist()
    if len(names) < 2:
        raise DataError("there is one source only", "Sources are folders of class folders: data/<source>/<class>/")
    for name in names:
        if len(np.unique(label[source != name])) < len(np.unique(label)):
            raise DataError(
                f"source {name!r} cannot be left out: no other has images of one of its labels",
                "Take --cv 5 in its place",
            )
    return [np.flatnonzero(source == name) for name in names]
