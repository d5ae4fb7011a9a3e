"""Test splits, folds and the choice of images to score, on lists of names without pictures."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from mri_edge.bundles.split import Role, Split, SplitImage, short
from mri_edge.errors import DataError, UsageError

selection_of_sklearn = pytest.importorskip("sklearn.model_selection", reason="needs the extra 'train'")

from mri_edge.train.data import duplicates, roles
from mri_edge.train.data.folder import Scan
from mri_edge.train.data.grouping import GroupRule
from mri_edge.train.data.roles import as_split, choose_test, find_split
from mri_edge.train.evaluation.evaluate import choose_scans
from mri_edge.train.recipes.reference import REFERENCE
from mri_edge.train.recipes.robust import ROBUST


def digest(name: str) -> str:
    return name.encode().hex().ljust(64, "0")


def scan(name: str, label: int = 0, content: str | None = None) -> Scan:
    return Scan(Path(name), name, name.rpartition("/")[0], label, digest(content or name))


def record(**roles: list[str]) -> Split:
    """Create a split record from names by role; the content of an image is its name."""
    return Split(tuple(SplitImage(name, digest(name), 0, role) for role, names in roles.items() for name in names))


def files(scans: list[Scan]) -> list[str]:
    return [scan.file for scan in scans]


# --- splits


@pytest.mark.parametrize(
    ("asked", "rule", "policy", "found"),
    [
        (None, None, REFERENCE.split, "reference"),
        (None, GroupRule(patients=Path("patients.csv")), REFERENCE.split, "grouped"),
        (None, GroupRule(block=40), ROBUST.split, "grouped"),
        (None, GroupRule(), REFERENCE.split, "grouped"),
        (None, GroupRule(), ROBUST.split, "reference"),  # the robust recipe always keeps near-duplicates together
        ("grouped", GroupRule(block=40), REFERENCE.split, "grouped"),
        ("stratified", None, REFERENCE.split, "stratified"),
        ("grouped", None, REFERENCE.split, "grouped"),
        ("reference", None, REFERENCE.split, "reference"),
    ],
)
def test_default_split_depends_on_the_group_rule(asked, rule, policy, found):
    assert find_split(asked, rule, policy) == found


@pytest.mark.parametrize("asked", ["reference", "stratified"])
@pytest.mark.parametrize("rule", [GroupRule(), GroupRule(block=2), GroupRule(patients=Path("patients.csv"))])
def test_split_that_would_divide_groups_is_rejected(asked, rule):
    with pytest.raises(UsageError, match="divides them"):
        find_split(asked, rule, REFERENCE.split)


LABELS = [0] * 40 + [1] * 60


def test_reference_split_is_scikit_learns_without_stratification():
    _, expected = selection_of_sklearn.train_test_split(np.arange(100), test_size=0.2, random_state=42)
    test = choose_test("reference", LABELS, [], test_fraction=0.2, seed=42)
    assert np.flatnonzero(test).tolist() == sorted(expected.tolist())
    assert choose_test("reference", LABELS[::-1], [], test_fraction=0.2, seed=42).tolist() == test.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_stratified_split_keeps_label_proportions(seed):
    test = choose_test("stratified", LABELS, [], test_fraction=0.2, seed=seed)
    assert np.bincount(np.array(LABELS)[test]).tolist() == [8, 12]


@pytest.mark.parametrize("seed", range(5))
def test_grouped_split_divides_no_group(seed):
    group = np.arange(100) // 4
    test = choose_test("grouped", LABELS, group, test_fraction=0.2, seed=seed)
    assert not set(group[test]) & set(group[~test])
    assert 12 <= test.sum() <= 28


def test_roles_are_in_order_and_excluded_scans_come_last():
    split = as_split([scan("a"), scan("b", 1), scan("c")], np.array([False, True, False]), [scan("d", 1)])
    assert [(image.file, image.sha256, image.label, image.role) for image in split.images] == [
        ("a", digest("a"), 0, "train"),
        ("b", digest("b"), 1, "test"),
        ("c", digest("c"), 0, "train"),
        ("d", digest("d"), 1, "excluded"),
    ]


# --- near-duplicates


def hashes(*differing: range) -> np.ndarray:
    """Return hashes of 128 bits that differ from zeros in these bits."""
    found = np.zeros((len(differing), 128), bool)
    for row, bits in enumerate(differing):
        found[row, list(bits)] = True
    return found


@pytest.mark.parametrize("bits", [0, 1, 8, 12])
def test_pictures_are_close_up_to_exactly_the_given_bits(bits):
    found = hashes(range(0), range(bits), range(bits + 1))
    assert [0, 1] in duplicates.close_pairs(found, bits).tolist()
    assert [0, 2] not in duplicates.close_pairs(found, bits).tolist()


def test_same_slice_is_within_8_bits_and_test_images_are_kept_12_apart():
    found = hashes(range(0), range(8), range(60, 69), range(80, 112))
    group = duplicates.groups(found)
    assert group[0] == group[1]
    assert len(set(group.tolist())) == 3
    assert duplicates.SAME_SLICE_BITS == 8
    assert duplicates.KEEP_APART_BITS == 12


def test_close_pairs_are_found_across_blocks():
    rng = np.random.default_rng(0)
    found = rng.random((1200, 128)) < 0.5
    twins = {3: 700, 511: 512, 600: 1199, 1023: 1024}
    for first, second in twins.items():
        found[second] = found[first]
        found[second, :8] ^= True
    assert sorted(map(tuple, duplicates.close_pairs(found, 8).tolist())) == sorted(twins.items())
    assert duplicates.close_pairs(found[:0], 8).shape == (0, 2)
    assert duplicates.close_pairs(found[:1], 8).shape == (0, 2)


def every_pair_joined(found: np.ndarray, patients: list[str] | None) -> np.ndarray:
    """Return the groups by comparing every two pictures, numbered as the committed cross-validations have them."""
    parent = np.arange(len(found))

    def root(index: int) -> int:
        while parent[index] != index:
            index = parent[index]
        return index

    for first, second in itertools.combinations(range(len(found)), 2):
        if np.count_nonzero(found[first] != found[second]) <= duplicates.SAME_SLICE_BITS:
            parent[root(first)] = root(second)
    for index, patient in enumerate(patients or ()):
        parent[root(index)] = root(patients.index(patient))
    return np.unique([root(index) for index in range(len(found))], return_inverse=True)[1]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("with_patients", [False, True])
def test_numbers_of_groups_are_those_of_comparing_every_pair(seed, with_patients):
    """Folds and committed records depend on the numbers. Copies, chains and strangers come in any order."""
    rng = np.random.default_rng(seed)
    strangers = rng.random((12, 128)) < 0.5
    neighbors = strangers[rng.integers(0, 12, 30)].copy()
    for row in neighbors:
        row[rng.choice(128, rng.integers(0, 12), replace=False)] ^= True
    pool = np.concatenate([strangers, neighbors])
    found = pool[rng.integers(0, len(pool), 80)]  # most of them several times
    patients = [str(number) for number in rng.integers(0, 60, 80)] if with_patients else None
    np.testing.assert_array_equal(duplicates.groups(found, patients=patients), every_pair_joined(found, patients))


def test_memory_does_not_grow_with_pairs_of_copies():
    found = np.repeat(hashes(range(0), range(64)), 2000, axis=0)
    tracemalloc.start()
    try:
        group = duplicates.groups(found)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sorted(set(group.tolist())) == [0, 1]
    assert peak < 32 << 20  # four million pairs take 64 MB and more


def test_close_pictures_are_found_around_the_chosen_ones():
    rng = np.random.default_rng(0)
    found = rng.random((1100, 128)) < 0.5
    found[700] = found[3] ^ (np.arange(128) < 12)
    found[800] = found[3] ^ (np.arange(128) < 13)
    found[900] = found[1099]
    chosen = np.array([1099, 3])
    assert np.flatnonzero(duplicates.close_to(found, 12, chosen)).tolist() == [3, 700, 900, 1099]
    assert not duplicates.close_to(found, 12, chosen[:0]).any()


def test_groups_are_joined_by_chains_and_by_patients():
    chain = hashes(range(0), range(8), range(16), range(40, 100), range(24), range(100, 128))
    group = duplicates.groups(chain)
    assert len({group[0], group[1], group[2], group[4]}) == 1
    assert len(set(group.tolist())) == 3
    joined = duplicates.groups(chain, patients=["p", "q", "r", "s", "t", "p"])
    assert joined[5] == joined[0] != joined[3]
    assert len(set(joined.tolist())) == 2
    assert sorted(set(joined.tolist())) == [0, 1]


# --- folds


@pytest.mark.parametrize("count", [2, 3, 5])
def test_folds_hold_out_each_image_once_and_divide_no_group(count):
    kind = np.array(["no"] * 40 + ["yes"] * 60)
    group = np.arange(100) // 2
    held = roles.by_group(kind, group, count)
    assert len(held) == count
    assert sorted(np.concatenate(held).tolist()) == list(range(100))
    for part in held:
        others = np.setdiff1d(np.arange(100), part)
        assert not set(group[part]) & set(group[others])
        assert np.mean(kind[part] == "no") == pytest.approx(0.4, abs=0.1)


def test_each_kind_needs_as_many_groups_as_folds():
    kind, group = np.array(["a"] * 6 + ["b"] * 6), np.array([0, 0, 1, 1, 2, 2, *range(3, 9)])
    assert len(roles.by_group(kind, group, 3)) == 3
    with pytest.raises(DataError, match="class 'a' has 3 groups of images"):
        roles.by_group(kind, group, 4)


def test_each_source_is_held_out_in_order():
    source, label = np.array(["b", "a", "b", "a", "c", "c"]), np.array([0, 0, 1, 1, 0, 1])
    assert [fold.tolist() for fold in roles.by_source(source, label)] == [[1, 3], [0, 2], [4, 5]]


def test_sources_that_cannot_be_left_out_are_reported():
    with pytest.raises(DataError, match="only one source"):
        roles.by_source(np.array(["a", "a"]), np.array([0, 1]))
    source = np.array(["a", "a", "b", "b"])
    for label, name in (([0, 1, 1, 1], "a"), ([1, 1, 0, 1], "b")):
        with pytest.raises(DataError, match=f"'{name}' cannot be left out"):
            roles.by_source(source, np.array(label))


# --- images to score


@pytest.mark.parametrize("role", ["train", "validation", "excluded"])
def test_image_with_any_role_in_training_is_not_unseen(role: Role):
    """Validation images chose the threshold, and excluded images are close to a test image."""
    split = record(**{role: ["a"], "test": ["elsewhere"]})
    chosen = choose_scans([scan("renamed", content="a"), scan("new")], split, None)
    assert files(chosen.scans) == ["new"]
    assert chosen.left_out == {role: 1}
    assert chosen.warnings == ["1 images are known from the bundle's training and left out."]
    with pytest.raises(DataError, match=rf"all 1 images are known from the bundle's training \({role} 1\)"):
        choose_scans([scan("a")], split, None)


def test_complete_test_images_are_scored_in_recorded_order():
    split = record(train=["a"], validation=["b"], test=["d", "c"])
    scans = [scan("a"), scan("b"), scan("c"), scan("d"), scan("new")]
    for role in (None, "test"):
        chosen = choose_scans(scans, split, role)
        assert files(chosen.scans) == ["d", "c"]
        assert chosen.left_out == {"train": 1, "validation": 1, "unknown": 1}
        assert len(chosen.warnings) == 1
        assert chosen.warnings[0].startswith("1 images that are not in the bundle's split record")


def test_incomplete_test_images_are_not_scored_as_the_test():
    split = record(train=["a"], test=["c", "d"])
    with pytest.raises(DataError, match="not all of the 2 test images"):
        choose_scans([scan("a"), scan("c")], split, "test")
    chosen = choose_scans([scan("a"), scan("c")], split, None)
    assert files(chosen.scans) == ["c"]
    with pytest.raises(DataError, match="no test images"):
        choose_scans([scan("a")], record(train=["a"]), "test")


def test_copy_with_the_recorded_name_is_preferred():
    split = record(test=["a"])
    chosen = choose_scans([scan("copy", content="a"), scan("a")], split, None)
    assert files(chosen.scans) == ["a"]
    assert chosen.left_out == {"test": 1}
    assert files(choose_scans([scan("x", content="a"), scan("y", content="a")], split, None).scans) == ["x"]


def test_test_image_that_also_trained_or_validated_is_reported():
    for role in ("train", "validation"):
        both = Split((*record(test=["a"]).images, SplitImage("copy", digest("a"), 0, role)))
        [words] = choose_scans([scan("a")], both, None).warnings
        assert words == "1 of the test images are byte for byte among the training images as well."
    excluded = Split((*record(test=["a"]).images, SplitImage("copy", digest("a"), 0, "excluded")))
    assert choose_scans([scan("a")], excluded, None).warnings == []


def test_role_closest_to_training_wins():
    split = Split(tuple(SplitImage(role, digest("a"), 0, role) for role in ("train", "validation", "excluded")))
    for images in (split.images, split.images[::-1]):
        assert choose_scans([scan("a"), scan("new")], Split(images), None).left_out == {"train": 1}
    later = Split(split.images[1:])
    assert choose_scans([scan("a"), scan("new")], later, None).left_out == {"validation": 1}


def test_test_image_in_the_folder_of_another_label_is_reported():
    [words] = choose_scans([scan("a", label=1)], record(test=["a"]), None).warnings
    assert words == "1 images are in the folder of another label than in the bundle's record."


def test_role_all_scores_everything_and_warns_of_training_images():
    split = record(train=["a"], validation=["b"], excluded=["c"], test=["d"])
    chosen = choose_scans([scan(name) for name in "abcde"], split, "all")
    assert files(chosen.scans) == list("abcde")
    [words] = chosen.warnings
    assert "2 OF THESE 5 IMAGES WERE IN TRAINING (train 1, validation 1)" in words
    again = choose_scans([scan(name) for name in "abcde"] + [scan("copy", content="a")], split, "all")
    assert (again.warnings[0], len(again.scans)) == (words, 5)
    assert choose_scans([scan("d"), scan("e")], split, "all").warnings == []


def test_bundle_without_a_record_scores_all_images_with_a_warning():
    chosen = choose_scans([scan("a")], None, None)
    assert files(chosen.scans) == ["a"]
    assert "no split record" in chosen.warnings[0]
    assert files(choose_scans([scan("a")], None, "all").scans) == ["a"]
    with pytest.raises(DataError, match="no split record"):
        choose_scans([scan("a")], None, "test")


@pytest.mark.parametrize("role", [None, "all"])
@pytest.mark.parametrize("known", [[], ["other"]])
def test_copies_of_unseen_images_count_once(role, known):
    """Copies are no independent images, and one file cannot have two labels."""
    split = record(train=known) if known else None
    chosen = choose_scans([scan("b"), scan("a"), scan("copy", content="b")], split, role)
    assert (files(chosen.scans), chosen.left_out) == (["b", "a"], {"copy": 1})
    assert chosen.warnings[-1] == "1 images are byte for byte copies of others and left out."
    two_labels = [scan("b"), scan("copy", content="b", label=1)]
    chosen = choose_scans([*two_labels, scan("a")], split, role)
    assert (files(chosen.scans), chosen.left_out) == (["a"], {"copy": 2})
    assert chosen.warnings[-1] == "Both are left out: b and copy are the same file with two labels."
    with pytest.raises(DataError, match="no image has one label: b and copy"):
        choose_scans(two_labels, split, role)


def test_copies_among_the_test_images_are_scored_as_in_the_record():
    split = Split(tuple(SplitImage(name, digest("a"), 0, "test") for name in ("a", "copy")))
    chosen = choose_scans([scan("a"), scan("copy", content="a")], split, None)
    assert (files(chosen.scans), chosen.warnings) == (["a", "copy"], [])


def test_condensed_record_gives_the_same_result():
    split = record(train=["a"], validation=["b"], test=["d", "c"])
    condensed = Split.from_condensed(split.to_condensed())
    scans = [scan(name) for name in ("a", "b", "c", "d", "new")]
    assert files(choose_scans(scans, condensed, None).scans) == ["d", "c"]
    assert choose_scans(scans[:2] + scans[4:], condensed, None).left_out == {"train": 1, "validation": 1}
    assert len(short(scans[0].sha256)) == 16


def test_bundle_has_a_full_a_condensed_or_no_record():
    split = record(train=["a"], test=["b"])
    contents = {"split.json": split.to_json().encode(), "split.npy": split.to_condensed()}
    assert Split.find({"split.json", "split.npy"}, contents.__getitem__) == split
    condensed = Split.find({"split.npy"}, contents.__getitem__)
    assert condensed is not None
    assert [(image.file, image.role) for image in condensed.images] == [("", "train"), ("", "test")]
    assert Split.find({"model.onnx"}, contents.__getitem__) is None
