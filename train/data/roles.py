"""Assign a role to each image: train, validation, test or excluded; make the folds of a cross-validation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from mri_edge.bundles.split import Role, Split, SplitImage
from mri_edge.errors import DataError, UsageError
from mri_edge.storage.atomic import fingerprint
from mri_edge.train.recipes import reference
from mri_edge.train.recipes.base import SplitPolicy

from .collection import Collection, Indices
from .duplicates import KEEP_APART_BITS, close_to
from .folder import Scan
from .grouping import GroupRule

VALIDATION_FOLDS = 8  # one of them validates: it fits the temperature and the threshold
_GROUPED_TEST_FOLDS = 5
# The reference's own split, from which recipes with ``keep_apart`` take their test images.
_REFERENCE_SPLIT = SplitPolicy(("reference",))


def find_split(split: str | None, rule: GroupRule | None, policy: SplitPolicy) -> str:
    """Return ``split``, or the default: ``"grouped"`` if ``rule`` asks for groups, else ``"reference"``.

    A recipe with ``keep_apart`` keeps near-duplicates together in either split, so that rule changes nothing.

    Raises
    ------
    UsageError
        The rule asks for groups, and the requested split would divide them.
    """
    if rule is None or (policy.keep_apart and rule == GroupRule()):
        return split or "reference"
    if split not in (None, "grouped"):
        raise UsageError(
            f"--groups {rule} keeps groups of scans together, and split {split!r} divides them",
            "Omit --split, or use --split grouped",
        )
    return "grouped"


def assign_roles(
    data: Collection,
    policy: SplitPolicy,
    split: str,
    label_names: Sequence[str],
    left_out: Sequence[Scan] = (),
    seed: int = 0,
) -> Split:
    """Assign a role to every image by the split policy of a recipe and the name of a split.

    ``seed`` chooses the validation images. The test images do not depend on it, so that models can be compared.

    Raises
    ------
    DataError
        There are too few images or groups, or a role lacks images of a label.
    """
    if policy.keep_apart:
        return choose_roles(data, split, left_out, seed)
    test = choose_test(split, data.label, data.group, test_fraction=policy.test_fraction, seed=policy.seed)
    check_roles(data.label, test, label_names)
    return as_split(data.scans, test, left_out)


def rows_of(split: Split, data: Collection) -> tuple[Indices, Indices, Indices]:
    """Return the rows of the collection that train, validate and test.

    Scans that the user excluded come last in the split and have no row.
    """
    roles = np.array([image.role for image in split.images[: len(data.scans)]])
    train, validation, test = (np.flatnonzero(roles == role) for role in ("train", "validation", "test"))
    return train, validation, test


def choose_test(
    split: str, labels: NDArray[np.intp], groups: NDArray[np.intp], *, test_fraction: float, seed: int
) -> NDArray[np.bool_]:
    """Choose the test images: bool (N,).

    ``reference`` is scikit-learn's ``train_test_split`` of the images in their order. ``stratified`` also keeps the
    proportions of the labels. ``grouped`` divides no group and keeps the proportions approximately.

    Raises
    ------
    DataError
        Too few images or groups.
    """
    indices = np.arange(len(labels))
    try:
        if split == "grouped":
            splitter = StratifiedGroupKFold(round(1 / test_fraction), shuffle=True, random_state=seed)
            test = _of_several_groups([held for _, held in splitter.split(indices, labels, groups)], groups)[0]
        else:
            keep = labels if split == "stratified" else None
            _, test = train_test_split(indices, test_size=test_fraction, random_state=seed, stratify=keep)
    except ValueError as error:
        raise DataError(
            f"{len(labels)} images cannot be split ({error})", "Add images, or choose another --split"
        ) from error
    return np.isin(indices, test)


def as_split(scans: Sequence[Scan], test: NDArray[np.bool_], excluded: Sequence[Scan] = ()) -> Split:
    """Make the split record of a bundle: the scans in their order, then the excluded ones."""
    roles: list[Role] = ["test" if is_test else "train" for is_test in test]
    roles += ["excluded"] * len(excluded)
    images = zip([*scans, *excluded], roles, strict=True)
    return Split(tuple(SplitImage(scan.file, scan.sha256, scan.label, role) for scan, role in images))


def check_roles(labels: NDArray[np.intp], test: NDArray[np.bool_], names: Sequence[str]) -> None:
    """Raise DataError unless training and test images include every label."""
    for role, chosen in (("training", ~test), ("test", test)):
        missing = [name for index, name in enumerate(names) if index not in labels[chosen]]
        if missing:
            raise DataError(
                f"no {role} image has the label {', '.join(missing)}",
                "Add images of that label, or choose another --split",
            )


def choose_roles(data: Collection, split: str = "reference", left_out: Sequence[Scan] = (), seed: int = 0) -> Split:
    """Assign roles so that no near-duplicate of a test image trains or validates.

    With ``"reference"``, the test images are the reference's own if one source is exactly its data set. Otherwise, and
    with ``"grouped"``, they are a fifth of the groups. Images close to a test image are excluded, as ``left_out`` are.
    One in eight of the remaining groups validates, separately in each class folder. ``seed`` chooses them.

    Raises
    ------
    DataError
        A class folder has too few groups of images to hold any out.
    """
    test = _reference_test(data) if split == "reference" else None
    if test is None:
        test = np.asarray(hold_out(data, np.arange(len(data.scans)), _GROUPED_TEST_FOLDS))
    kept_apart = near(data, test)
    roles: list[Role] = ["train"] * len(data.scans)
    for index in np.flatnonzero(kept_apart):
        roles[index] = "excluded"
    for index in test:
        roles[index] = "test"
    usable = np.flatnonzero(~kept_apart)
    for index in usable[hold_out(data, usable, seed=seed)]:
        roles[index] = "validation"
    roles += ["excluded"] * len(left_out)
    images = zip([*data.scans, *left_out], roles, strict=True)
    return Split(tuple(SplitImage(scan.file, scan.sha256, scan.label, role) for scan, role in images))


def may_train(data: Collection) -> NDArray[np.bool_]:
    """Return bool (N,): False for the reference's test images if the data contain them, and for images near them."""
    test = _reference_test(data)
    return np.ones(len(data.scans), bool) if test is None else ~near(data, test)


def near(data: Collection, chosen: Indices) -> NDArray[np.bool_]:
    """Return bool (N,): True for the chosen images, for their groups, and for images within ``KEEP_APART_BITS``."""
    return np.isin(data.group, data.group[chosen]) | close_to(data.hashes, KEEP_APART_BITS, chosen)


def hold_out(data: Collection, candidates: Indices, parts: int = VALIDATION_FOLDS, seed: int = 0) -> Indices:
    """Return the positions in ``candidates`` that one of ``parts`` grouped folds holds out.

    ``seed`` chooses the fold: shuffling alone hardly changes folds of large groups, which are assigned by size. A fold
    that is mostly a single group is passed over.

    Raises DataError if there are too few groups.
    """
    try:
        folds = grouped_folds(data, candidates, parts, seed)
    except DataError as error:  # these folds are not those of --cv, so fewer cannot be asked for
        raise DataError(
            f"no images can be held out to validate or test: {error.problem}",
            "Add images of that class, or use smaller groups (--groups)",
        ) from error
    several = _of_several_groups(folds, data.group[candidates])
    return several[seed % len(several)]


def _of_several_groups(folds: Sequence[Indices], group: Indices) -> Sequence[Indices]:
    """Return the folds in which no group (N,) has more than half of the images, or all folds if there are none.

    scikit-learn assigns the largest groups first, so the first fold has the largest one. Near-duplicates may join
    blocks of numbers to a group of hundreds, which can train a model, but as a test counts as a single case.
    """
    several = [held for held in folds if np.unique(group[held], return_counts=True)[1].max() <= len(held) / 2]
    return several or folds


def grouped_folds(data: Collection, candidates: Indices, parts: int, seed: int = 0) -> list[Indices]:
    """Return the positions in ``candidates`` that each fold holds out: whole groups, balanced over class folders.

    Raises DataError if there are too few groups.
    """
    folder = np.array([data.scans[index].folder for index in candidates])
    return by_group(folder, data.group[candidates], parts, seed)


def check_training_rows(data: Collection, learn: Indices, number: int) -> None:
    """Raise DataError unless the rows ``learn`` include every label, because groups may reach into a held-out fold."""
    for index in np.unique(data.label):
        if index not in data.label[learn]:
            folders = sorted({scan.folder for scan in data.scans if scan.label == index})
            raise DataError(
                f"fold {number} leaves no image of {', '.join(folders)} for training: all share a group with held-out "
                f"images (grouped by {data.grouping})",
                f"Use {data.smaller_groups}fewer folds or more images",
            )


def _reference_test(data: Collection) -> Indices | None:
    """Return the test images of the source that is the reference's data set, or None if there is none."""
    for source in np.unique(data.source):
        members = np.flatnonzero(data.source == source)
        if fingerprint(data.scans[index].sha256 for index in members.tolist()) == reference.DATA:
            test = choose_test(
                "reference",
                data.label[members],
                data.group[members],
                test_fraction=_REFERENCE_SPLIT.test_fraction,
                seed=_REFERENCE_SPLIT.seed,
            )
            return np.asarray(members[test])
    return None


def by_group(kind: NDArray[np.generic], group: Indices, folds: int, seed: int = 0) -> list[Indices]:
    """Return the positions that each fold holds out: whole groups, balanced over ``kind`` (N,) as far as possible.

    Raises
    ------
    DataError
        A kind has fewer groups than there are folds.
    """
    groups_of = {str(name): len(np.unique(group[kind == name])) for name in np.unique(kind)}
    fewest = min(groups_of, key=groups_of.__getitem__)
    if groups_of[fewest] < folds:
        raise DataError(
            f"class {fewest!r} has {groups_of[fewest]} groups of images left, and at least {folds} are needed: a group "
            "is never divided",
            "Add images of that class, use smaller groups (--groups), or ask for fewer folds",
        )
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return [held for _, held in splitter.split(kind, kind, group)]


def by_source(source: NDArray[np.str_], label: Indices) -> list[Indices]:
    """Return the positions of each source's images (N,) as one fold, in alphabetical order.

    Raises
    ------
    DataError
        There is only one source, or leaving out a source leaves a label without images.
    """
    names = np.unique(source).tolist()
    if len(names) < 2:
        raise DataError("the data have only one source", "Sources are folders of class folders: data/<source>/<class>/")
    for name in names:
        if len(np.unique(label[source != name])) < len(np.unique(label)):
            raise DataError(
                f"source {name!r} cannot be left out: no other source has images of one of its labels",
                "Use --cv 5 instead",
            )
    return [np.flatnonzero(source == name) for name in names]
