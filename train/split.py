"""Who trains and who tests: the reference's split, recorded as ``mri_edge.split.Split``."""

from __future__ import annotations

from collections.abc import Sequence

from mri_edge.split import Split, SplitImage
from sklearn.model_selection import train_test_split

from .data import Scan


def reference_split(scans: Sequence[Scan], *, test_share: float, seed: int) -> Split:
    """scikit-learn's ``train_test_split`` over the scans in their order, not stratified.

    The order of the training images in the record is the order of the scans, not the shuffled one:
    an epoch draws its own order.
    """
    _, test = train_test_split(range(len(scans)), test_size=test_share, random_state=seed)
    chosen = set(test)
    return Split(
        tuple(
            SplitImage(scan.file, scan.sha256, scan.label, "test" if index in chosen else "train")
            for index, scan in enumerate(scans)
        )
    )
