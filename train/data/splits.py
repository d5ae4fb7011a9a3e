"""Choose the test images: by the reference's split or one of two better ones, recorded as a ``Split``."""

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
    """Return ``split``; if it is None, ``"grouped"`` if patients are known, else ``"reference"``.

    Raises
    ------
    UsageError
        Patients are known, and the requested split would divide them.
    """
    if patients and split not in (None, "grouped"):
        raise UsageError(
            f"--groups keeps patients together, and split {split!r} divides them",
            "Leave --split out, or take --split grouped",
        )
    return split or ("grouped" if patients else "reference")


def choose_test(
    split: str, labels: NDArray[np.intp], groups: NDArray[np.intp], *, test_fraction: float, seed: int
) -> NDArray[np.bool_]:
    """Choose the test images: bool (N,).

    ``reference``: scikit-learn's ``train_test_split`` over the images in their order. ``stratified``: the same
    with the proportions of the labels kept. ``grouped``: no group is divided; proportions are kept approximately.

    Raises
    ------
    DataError
        Too few images or groups.
    """
    indices = np.arange(len(labels))
    try:
        if split == "grouped":
            folds = StratifiedGroupKFold(round(1 / test_fraction), shuffle=True, random_state=seed)
            _, test = next(folds.split(indices, labels, groups))
        else:
            keep = labels if split == "stratified" else None
            _, test = train_test_split(indices, test_size=test_fraction, random_state=seed, stratify=keep)
    except ValueError as error:
        raise DataError(
            f"{len(labels)} images cannot be split ({error})", "Add images, or choose another --split"
        ) from error
    return np.isin(indices, test)


def as_split(scans: Sequence[Scan], test: NDArray[np.bool_], excluded: Sequence[Scan] = ()) -> Split:
    """Make the record for the bundle: the scans in their order, then the excluded ones."""
    roles: list[Role] = ["test" if is_test else "train" for is_test in test]
    roles += ["excluded"] * len(excluded)
    images = zip([*scans, *excluded], roles, strict=True)
    return Split(tuple(SplitImage(scan.file, scan.sha256, scan.label, role) for scan, role in images))
