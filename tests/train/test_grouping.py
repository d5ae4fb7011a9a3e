"""Test the rules of ``--groups``, the measurement of file order, and that splits and folds divide no block."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("keras", reason="needs the extra 'train'")

from mri_edge.cli import run
from mri_edge.errors import DataError, UsageError
from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.train import crossval
from mri_edge.train.data import duplicates, roles
from mri_edge.train.data.audit import audit, check_groups
from mri_edge.train.data.collection import Collection, collect
from mri_edge.train.data.folder import Scan, find_scans
from mri_edge.train.data.grouping import BLOCK_SIZE, GroupRule, group_scans, parse_groups, read_patients
from mri_edge.train.data.labels import Labels
from mri_edge.train.data.order import THUMBNAIL, FileOrder, measure_order, numbered, thumbnail
from mri_edge.train.data.selection import select
from mri_edge.train.recipes.base import Head
from mri_edge.train.recipes.distilled import SMALL
from mri_edge.train.recipes.reference import REFERENCE
from mri_edge.train.recipes.robust import ROBUST


def scan(file: str, label: int = 0) -> Scan:
    return Scan(Path(file), file, file.rpartition("/")[0], label, file)


def far_apart(count: int) -> duplicates.Hashes:
    return np.random.default_rng(0).random((count, duplicates.HASH_BITS)) < 0.5


def patients_in_order(folder: str, patients: int, slices: int, seed: int = 0) -> tuple[list[Scan], np.ndarray]:
    """Return scans numbered patient by patient, and their thumbnails: slices of one patient look alike."""
    rng = np.random.default_rng(seed)
    patterns = rng.integers(0, 256, (patients, 1, THUMBNAIL, THUMBNAIL))
    noise = rng.integers(-40, 40, (patients, slices, THUMBNAIL, THUMBNAIL))
    thumbnails = np.clip(patterns + noise, 0, 255).reshape(-1, THUMBNAIL, THUMBNAIL).astype(np.uint8)
    return [scan(f"{folder}/Tr-{index:04}.jpg") for index in range(len(thumbnails))], thumbnails


# --- reading the rule


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("near-duplicates", GroupRule()),
        ("blocks", GroupRule(block=BLOCK_SIZE)),
        ("blocks:7", GroupRule(block=7)),
    ],
)
def test_rules_are_read(text, rule):
    assert parse_groups(text) == rule
    assert parse_groups(str(rule)) == rule


def test_csv_file_is_a_rule(tmp_path):
    (tmp_path / "patients.csv").touch()
    assert parse_groups(tmp_path / "patients.csv") == GroupRule(patients=tmp_path / "patients.csv")


@pytest.mark.parametrize("text", ["block", "blocks:", "blocks:1", "blocks:many", "nowhere.csv", ""])
def test_unknown_rules_are_rejected_with_the_choices(text):
    with pytest.raises(UsageError, match=r"blocks"):
        parse_groups(text)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("glioma/Tr-gl_0012.jpg", ("Tr-gl_", 12)),
        ("no/12 no.jpeg", ("", 12)),
        ("yes/a1b22.png", ("a1b", 22)),
        ("yes/brain.png", None),
        ("yes/3.tar.gz", ("", 3)),
        ("yes/1.2.840.12345678901234567890123.dcm", ("1.2.840.12345678", 901234567890123)),
    ],
)
def test_number_is_the_last_of_the_file_name(file, name):
    assert numbered(file) == name


def test_small_recipe_excludes_scans_only_with_cross_validation(folders, tmp_path, capfd):
    given = ["train", str(folders), "--recipe", "small", "--exclude", "nothing/*", "--out", str(tmp_path / "out")]
    assert run([*given, "--teacher", "vgg16"]) == 2
    assert "recipe 'small' has no --exclude: it uses the split of its teacher" in capfd.readouterr().err
    assert run([*given, "--cv", "2"]) != 0
    assert "teacher" not in capfd.readouterr().err


def test_small_recipe_takes_a_rule_only_with_cross_validation(folders, tmp_path, capfd):
    given = ["train", str(folders), "--recipe", "small", "--groups", "nonsense", "--out", str(tmp_path / "out")]
    assert run([*given, "--teacher", "vgg16"]) == 2
    assert "recipe 'small' has no --groups: it uses the split of its teacher" in capfd.readouterr().err
    assert run([*given, "--cv", "2"]) == 2
    assert "--groups: no such rule or file: 'nonsense'. Choose blocks, blocks:SIZE, near-dup" in capfd.readouterr().err


# --- measuring the order


def test_order_of_patients_is_recognized():
    scans, thumbnails = patients_in_order("a/glioma", patients=30, slices=8)
    [folder] = measure_order(scans, thumbnails)
    assert (folder.folder, folder.images) == ("a/glioma", 240)
    assert folder.fraction > 0.8
    assert folder.low > 3 * folder.chance
    assert folder.carries_identity


def test_few_neighbors_among_strangers_do_not_make_an_order():
    """Blocks of a folder like nickparvar's healthy one would be joined to a single group by near-duplicates."""
    assert not FileOrder("notumor", images=451, fraction=0.071, low=0.05, high=0.1, chance=0.01).carries_identity
    assert FileOrder("glioma", images=1114, fraction=0.7, low=0.67, high=0.72, chance=0.008).carries_identity


def test_random_order_is_not_taken_for_identity():
    scans, thumbnails = patients_in_order("a/glioma", patients=30, slices=8)
    shuffled = np.random.default_rng(1).permutation(len(scans))
    [folder] = measure_order(scans, thumbnails[shuffled])
    assert not folder.carries_identity
    assert folder.fraction == pytest.approx(folder.chance, abs=0.05)


def test_chance_is_the_mean_fraction_of_neighbors():
    files = ["a/x1.png", "a/x4.png", "a/x20.png", "a/y3.png", "a/none.png"]
    scans = [scan(file) for file in files]
    thumbnails = np.random.default_rng(0).integers(0, 256, (5, THUMBNAIL, THUMBNAIL), dtype=np.uint8)
    [folder] = measure_order(scans, thumbnails)
    assert folder.chance == pytest.approx(2 / 20)  # x1 and x4, of five files with four others each


def test_sampled_and_chunked_search_finds_the_nearest_image(monkeypatch):
    scans, thumbnails = patients_in_order("glioma", patients=20, slices=5)
    [whole] = measure_order(scans, thumbnails)
    monkeypatch.setattr("mri_edge.train.data.order._ROWS", 7)
    monkeypatch.setattr("mri_edge.train.data.order._COLUMNS", 9)
    assert measure_order(scans, thumbnails) == [whole]
    monkeypatch.setattr("mri_edge.train.data.order._QUERIES", 30)
    [sampled] = measure_order(scans, thumbnails)
    assert sampled.images == 30
    assert sampled.fraction == pytest.approx(whole.fraction, abs=0.15)


def test_single_image_and_flat_images_are_measured_without_a_warning():
    flat = np.zeros((3, THUMBNAIL, THUMBNAIL), np.uint8)
    assert not measure_order([scan("a/1.png")], flat[:1])[0].carries_identity
    assert not measure_order([scan(f"a/{index}.png") for index in (1, 50, 99)], flat)[0].carries_identity


def test_thumbnail_is_gray_and_small():
    assert thumbnail(np.full((50, 40, 3), 9, np.uint8)).tolist() == [[9] * THUMBNAIL] * THUMBNAIL


@pytest.mark.data
def test_order_of_the_public_collections(scans):
    found, _ = find_scans(scans)
    data = collect(found, Preprocessing(height=8, width=8), rule=GroupRule(block=40), with_slices=False)
    assert {folder.folder: folder.fraction for folder in data.order} == pytest.approx(
        {
            "navoneel/no": 0.13,
            "navoneel/yes": 0.08,
            "nickparvar-train/glioma": 0.70,
            "nickparvar-train/meningioma": 0.63,
            "nickparvar-train/notumor": 0.07,
            "nickparvar-train/pituitary": 0.76,
        },
        abs=0.02,
    )
    assert data.grouping == (
        "blocks of 40 numbers in nickparvar-train/glioma, nickparvar-train/meningioma, nickparvar-train/pituitary, "
        "joined with near-duplicates"
    )


# --- grouping


def test_blocks_are_used_only_in_ordered_folders():
    ordered, thumbnails = patients_in_order("a/glioma", patients=30, slices=8)
    other = [scan(f"b/glioma/{index}.jpg") for index in range(240)]
    both_scans = [*ordered, *other]
    both = np.concatenate([thumbnails, np.random.default_rng(3).integers(0, 256, thumbnails.shape, dtype=np.uint8)])
    order = measure_order(both_scans, both)
    found = group_scans(both_scans, far_apart(480), order, GroupRule(block=40))
    assert found.text == "blocks of 40 numbers in a/glioma, joined with near-duplicates"
    assert [len(set(found.group[start : start + 40])) for start in range(0, 240, 40)] == [1] * 6
    assert len(set(found.group)) == 6 + 240
    alone = group_scans(other, far_apart(240), measure_order(other, both[240:]), GroupRule(block=40))
    assert alone.text.startswith("near-duplicates (file order carries no identity")
    assert len(set(alone.group)) == 240


def test_blocks_are_per_folder_and_prefix_and_join_near_duplicates():
    scans, thumbnails = patients_in_order("a/glioma", patients=30, slices=8)
    more = [scan("a/glioma/Te-0001.jpg"), scan("a/notumor/Tr-0001.jpg"), scan("a/glioma/unnumbered.jpg")]
    hashes = far_apart(len(scans) + 3)
    order = measure_order(scans, thumbnails)
    found = group_scans([*scans, *more], hashes, order, GroupRule(block=40)).group
    assert len(set(found)) == 6 + 3
    hashes[50] = hashes[0]  # near-duplicates in two blocks join them
    found = group_scans([*scans, *more], hashes, order, GroupRule(block=40)).group
    assert len(set(found[:80])) == 1
    assert len(set(found)) == 5 + 3


def test_patients_are_read_before_pictures_are(folders, tmp_path):
    csv = tmp_path / "patients.csv"
    csv.write_text("file,group\nno/no00.png,a\n")
    with pytest.raises(DataError, match="no group for 29 scans"):
        select(folders, None, (), parse_groups(csv))
    assert read_patients(csv, [scan("no/no00.png")]) == ["a"]


def test_spaces_around_the_values_of_a_csv_divide_no_patient(tmp_path):
    csv, scans = tmp_path / "patients.csv", [scan(f"no/{name}.png") for name in "abc"]
    csv.write_text("file,group\nno/a.png,P0\n no/b.png ,P0 \nno/c.png,\t\nno/c.png,P1\nno/d.png\n", encoding="utf-8")
    assert read_patients(csv, scans) == ["P0", "P0", "P1"]
    csv.write_text("file,group\nno/a.png,P0\nno/b.png, \nno/c.png,P1\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"no group for 1 scans, for example 'no/b\.png'"):
        read_patients(csv, scans)


@pytest.mark.parametrize(("one", "other"), [("P0", "p0"), ("Jos\u00e9", "Jose\u0301"), ("P 0", "P\u00a00")])
def test_groups_that_differ_only_in_case_or_unicode_form_are_refused(one, other, tmp_path):
    csv = tmp_path / "patients.csv"
    csv.write_text(f"file,group\nno/a.png,{one}\nno/b.png,{other}\n", encoding="utf-8")
    with pytest.raises(DataError, match="differ only in case or Unicode form") as raised:
        read_patients(csv, [scan("no/a.png"), scan("no/b.png")])
    assert repr(one) in raised.value.problem
    assert repr(other) in raised.value.problem


# --- refusing unusable groups


def collection_of(label: np.ndarray, group: np.ndarray, grouping: str = "near-duplicates") -> Collection:
    scans = [scan(f"{kind}/{index}.png", int(kind)) for index, kind in enumerate(label)]
    pixels = np.zeros((len(label), 1), np.uint8)
    return Collection(scans, [], pixels, label, np.array([""] * len(label)), group, far_apart(len(label)), grouping)


def test_label_with_too_few_groups_is_named():
    label = np.array([0] * 10 + [1] * 10)
    group = np.array([*range(10), *[10] * 10])
    data = collection_of(label, group, "blocks of 40 numbers, joined with near-duplicates")
    message = (
        r"label 'tumour' has 1 group of images \(10 images, grouped by blocks of 40.*at least 2.*--groups blocks:SIZE"
    )
    with pytest.raises(DataError, match=message):
        check_groups(data, ("no tumour", "tumour"))
    check_groups(collection_of(label, np.arange(20) // 2), ("no tumour", "tumour"), 5)
    with pytest.raises(
        DataError, match=r"label 'no tumour' has 5 groups.*at least 6.*\. Use fewer folds or more images"
    ):
        check_groups(collection_of(label, np.arange(20) // 2), ("no tumour", "tumour"), 6)


@pytest.mark.parametrize("recipe", [REFERENCE, ROBUST], ids=["reference", "robust"])
def test_csv_that_puts_everything_into_one_group_is_rejected_before_training(folders, tmp_path, recipe, weights_file):
    from mri_edge.train.pipeline import train_bundle

    csv = tmp_path / "patients.csv"
    csv.write_text("file,group\n" + "".join(f"{item.file},all\n" for item in find_scans(folders)[0]))
    chosen = {"seed": 0, "backbone_weights": str(weights_file), "groups": csv}
    with pytest.raises(DataError, match="has 1 group of images"):
        train_bundle(folders, tmp_path / "out", recipe, **chosen)
    with pytest.raises(DataError, match="has 1 group of images"):
        crossval.cross_validate(folders, tmp_path / "cv", recipe, folds=3, **chosen)


def test_patients_that_leave_a_label_untrained_are_rejected_before_training(two_sources):
    """Every tumor of ``b`` is of a patient of ``a``, so nothing of that label is left when ``a`` is held out."""
    scans = find_scans(two_sources)[0]
    group = np.array([0 if item.label else index for index, item in enumerate(scans)])
    data = collection_of(np.array([item.label for item in scans]), group, "patients in patients.csv")
    data = dataclasses.replace(data, scans=scans, source=np.array([item.source for item in scans]))
    with pytest.raises(DataError, match=r"fold 1 leaves no image of a/yes, b/glioma for training.*patients\.csv"):
        crossval._make_folds(data, np.ones(100, bool), small_version(REFERENCE), None, 0)


# --- the audit


def test_audit_recommends_blocks_only_where_they_help():
    scans, thumbnails = patients_in_order("a/glioma", patients=30, slices=8)
    order = measure_order(scans, thumbnails)
    label = np.zeros(240, np.intp)
    data = dataclasses.replace(collection_of(label, np.arange(240)), scans=scans, order=order)
    said: list[str] = []
    audit(data, None, said.append)
    assert "File order carries identity in a/glioma." in said[-1]
    assert said[-1].endswith("Use --groups blocks to keep neighbors together.")
    said.clear()
    audit(data, GroupRule(block=40), said.append)
    assert said == ["groups: near-duplicates; 240 images in 240 groups"]
    said.clear()
    audit(dataclasses.replace(data, order=()), None, said.append)
    assert said == []


# --- folds and splits


@pytest.fixture
def numbered_patients(tmp_path):
    """``data/a/{no,yes}``: 24 patients of 5 slices each, numbered patient by patient."""
    rng = np.random.default_rng(0)
    for folder in ("no", "yes"):
        (tmp_path / "data" / "a" / folder).mkdir(parents=True)
        for patient in range(24):
            slice_pixels = rng.integers(0, 200, (32, 32))
            for number in range(5):
                pixels = np.clip(slice_pixels + rng.integers(0, 56, (32, 32)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / "a" / folder / f"{patient * 5 + number}.png")
    return tmp_path / "data"


def small_version(recipe):
    prepared = dataclasses.replace(recipe.preprocessing, height=32, width=32)
    return dataclasses.replace(recipe, preprocessing=prepared, head=Head(8, 0.5))


@pytest.mark.parametrize("recipe", [REFERENCE, ROBUST, SMALL], ids=["reference", "robust", "small"])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_fold_divides_a_block(numbered_patients, recipe, seed):
    recipe = small_version(recipe)
    selection = select(numbered_patients, None, (), GroupRule(block=10))
    data = collect(selection.scans, recipe.preprocessing, rule=selection.rule)
    assert data.grouping == "blocks of 10 numbers in a/no, a/yes, joined with near-duplicates"
    trainable = np.ones(len(data.scans), bool)
    block = np.array([f"{item.folder}/{numbered(item.file)[1] // 10}" for item in data.scans])
    folds = crossval._make_folds(data, trainable, recipe, 3, seed)
    assert sorted(np.concatenate([fold.held for fold in folds])) == list(range(len(data.scans)))
    for fold in folds:
        parts = [set(block[rows]) for rows in (fold.held, fold.train, fold.validation)]
        assert not parts[0] & parts[1]
        assert not parts[0] & parts[2]
        assert not parts[1] & parts[2]


@pytest.mark.parametrize("recipe", [REFERENCE, ROBUST], ids=["reference", "robust"])
def test_no_split_of_a_training_divides_a_block(numbered_patients, recipe):
    recipe = small_version(recipe)
    rule = GroupRule(block=10)
    data = collect(find_scans(numbered_patients)[0], recipe.preprocessing, rule=rule)
    split = roles.find_split(None, rule, recipe.split)
    record = roles.assign_roles(data, recipe.split, split, ("no tumour", "tumour"), (), seed=3)
    role_of: dict[str, set[str]] = {}
    for item, image in zip(data.scans, record.images, strict=True):
        role_of.setdefault(f"{item.folder}/{numbered(item.file)[1] // 10}", set()).add(image.role)
    assert all(len(found) == 1 for found in role_of.values())
    assert {"train", "test"} <= set.union(*role_of.values())


def test_cross_validation_uses_blocks_by_default(numbered_patients, tmp_path, monkeypatch, weights_file):
    recipe = small_version(REFERENCE)
    said: list[str] = []

    def stop(job, *rest):
        raise KeyboardInterrupt

    monkeypatch.setattr(crossval, "train_model", stop)
    with pytest.raises(KeyboardInterrupt):
        crossval.cross_validate(
            numbered_patients,
            tmp_path / "out",
            recipe,
            folds=2,
            seed=0,
            backbone_weights=str(weights_file),
            say=said.append,
        )
    assert "labels: no tumour = no; tumour = yes (positive: tumour)" in said
    assert any(
        text == "groups: blocks of 40 numbers in a/no, a/yes, joined with near-duplicates; 240 images in 6 groups"
        for text in said
    )


def test_leaving_out_a_source_excludes_planted_look_alikes(two_sources, monkeypatch, tmp_path):
    """A picture of source ``a``, saved again in ``b`` as JPEG, must not train when ``a`` is left out."""
    recipe = small_version(ROBUST)
    rng = np.random.default_rng(5)
    smooth = Image.fromarray(rng.integers(0, 255, (6, 6), dtype=np.uint8)).resize((40, 40), Image.Resampling.BICUBIC)
    smooth.save(two_sources / "a" / "yes" / "planted.png")
    smooth.save(two_sources / "b" / "glioma" / "planted.jpg", quality=60)
    data = collect(find_scans(two_sources)[0], recipe.preprocessing)
    planted = {index for index, item in enumerate(data.scans) if "planted" in item.file}
    folds = crossval._make_folds(data, np.ones(len(data.scans), bool), recipe, None, 0)
    for fold in folds:
        assert len(planted & set(fold.held)) == 1
        assert not planted & (set(fold.train) | set(fold.validation))


# --- seeds


def test_seed_changes_validation_images_and_not_test_images(two_sources):
    data = collect(find_scans(two_sources)[0], Preprocessing(height=8, width=8))
    splits = {seed: roles.choose_roles(data, seed=seed) for seed in (0, 1, 2)}
    assert splits[0] == roles.choose_roles(data)
    assert len({split.split_fingerprint for split in splits.values()}) == 3
    assert len({tuple(image.file for image in split.of("test")) for split in splits.values()}) == 1
    assert len({tuple(image.file for image in split.of("validation")) for split in splits.values()}) == 3


def blocks_with_a_giant() -> Collection:
    """Return 400 scans of each label in groups of 10, of which 200 of the second label are one group."""
    group = np.concatenate([np.arange(400) // 10, 40 + np.arange(200) // 10, np.full(200, 60)])
    return collection_of(np.repeat([0, 1], 400), group)


def test_giant_group_trains_instead_of_being_the_test():
    data = blocks_with_a_giant()
    test = roles.choose_test("grouped", data.label, data.group, test_fraction=0.2, seed=42)
    assert not test[data.group == 60].any()
    assert len(np.unique(data.group[test & (data.label == 1)])) > 1
    for seed in (0, 1):
        split = roles.choose_roles(data, "grouped", (), seed)
        role = np.array([image.role for image in split.images])
        assert set(role[data.group == 60]) == {"train"}


def test_seeds_validate_on_other_groups_even_if_groups_are_large():
    data = blocks_with_a_giant()
    everyone = np.arange(len(data.scans))
    held = [set(data.group[roles.hold_out(data, everyone, 8, seed)]) for seed in range(7)]
    assert all(len(one & other) < len(one) for index, one in enumerate(held) for other in held[:index])


def test_folds_of_another_seed_calibrate_on_other_images(two_sources):
    recipe = small_version(ROBUST)
    data = collect(find_scans(two_sources)[0], recipe.preprocessing)
    trainable = np.ones(len(data.scans), bool)
    [one], [other] = (crossval._make_folds(data, trainable, recipe, 2, seed)[:1] for seed in (0, 1))
    np.testing.assert_array_equal(one.held, other.held)
    assert set(one.validation) != set(other.validation)


def test_calibration_without_a_positive_label_fits_only_the_temperature(monkeypatch):
    from mri_edge.train import training
    from mri_edge.train.recipes.base import Calibration

    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 60)
    probabilities = rng.dirichlet(np.ones(3), 60).astype(np.float32)
    monkeypatch.setattr(training, "predict", lambda *arguments, **options: probabilities)
    monkeypatch.setattr(training.calibration, "build_in_temperature", lambda *arguments: None)
    data = SimpleNamespace(label=label, pixels=None)
    for positive, has_threshold in ((None, False), (2, True)):
        job = training.Job(
            data, Labels(("a", "b", "c"), positive, {}), np.empty(0, int), np.arange(60), np.empty(0, int), None, 0
        )
        temperature, threshold = training.calibrate(SimpleNamespace(whole=None), job, Preprocessing(), Calibration())
        assert temperature > 0
        assert (threshold is not None) == has_threshold
        assert ("threshold_rule" in training._calibration_facts(job, Calibration(), temperature)) == has_threshold
