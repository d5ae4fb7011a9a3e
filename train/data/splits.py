"""Who trains and who tests: the reference's split and two better ones, recorded as ``mri_edge.bundles.split.Split``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from mri_edge.bundles.split import Role, Split, SplitImage
from mri_edge.errors import DataError, UsageError

from .folder import Scan

SPLITS = ("reference", "stratified", "grouped")


def find_split(split: str | None, *, patients: bool) -> str:
    """``split``; where none is asked for ``"grouped"`` if patients are known, else ``"reference"``.

    Raises
    ------
    UsageError
        Patients are known, and the split that is asked for would divide them.
    """
    if patients and split not in (None, "grouped"):
        raise UsageError(
            f"--groups keeps patients together, and split {split!r} divides them",
            "Leave --split out, or take --split grouped",
        )
    return split or ("grouped" if patients else "reference")


def choose_test(
    split: str, labels: NDArray[np.intp], groups: NDArray[np.intp], *, test_share: float, seed: int
) -> NDArray[np.bool_]:
    """Which images are for the test: bool (N,).

    ``reference``: scikit-learn's ``train_test_split`` over the images in their order. ``stratified``: the same
    with the shares of the labels kept. ``grouped``: no group is divided, shares kept as near as that allows.

    Raises
    ------
    DataError
        Too few images or groups.
    """
    indices = np.arange(len(labels))
    try:
        if split == "grouped":
            folds = StratifiedGroupKFold(round(1 / test_share), shuffle=True, random_state=seed)
            _, test = next(folds.split(indices, labels, groups))
        else:
            keep = labels if split == "stratified" else None
            _, test = train_test_split(indices, test_size=test_share, random_state=seed, stratify=keep)
    except ValueError as error:
        raise DataError(
            f"{len(labels)} images cannot be split ({error})", "Add images, or choose another --split"
        ) from error
    return np.isin(indices, test)


def as_split(scans: Sequence[Scan], test: NDArray[np.bool_], excluded: Sequence[Scan] = ()) -> Split:
    """The split as it travels in the bundle: the scans in their order, then those that were left out."""
    roles: list[Role] = ["test" if one else "train" for one in test]
    roles += ["excluded"] * len(excluded)
    everyone = zip([*scans, *excluded], roles, strict=True)
    return Split(tuple(SplitImage(scan.file, scan.sha256, scan.label, role) for scan, role in everyone))
