"""Test which images an evaluation may score, with a full and with a condensed split record."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mri_edge.authoring.writer import rewrite_bundle
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.split import SPLIT, Split, SplitImage
from mri_edge.cli import run
from mri_edge.errors import DataError
from mri_edge.storage.atomic import sha256_of

pytest.importorskip("sklearn", reason="needs the extra 'train'")
pytest.importorskip("matplotlib", reason="needs the extra 'train'")

from mri_edge.train.data.folder import Scan
from mri_edge.train.evaluation.evaluate import choose_scans, evaluate


def sha(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def scans_of(*files: tuple[str, str]) -> list[Scan]:
    """Create scans of label 0 from names and contents."""
    return [Scan(Path(file), file, "no", 0, sha(content)) for file, content in files]


@pytest.fixture(params=["whole", "condensed"])
def record(request):
    """Create a split from names, contents and roles, full or condensed as in a slim bundle."""

    def make(*images: tuple[str, str, str]) -> Split:
        split = Split(tuple(SplitImage(file, sha(content), 0, role) for file, content, role in images))
        return split if request.param == "whole" else Split.from_condensed(split.to_condensed())

    return make


def test_training_validation_and_excluded_images_are_not_unseen(record):
    split = record(
        ("no/t.png", "trained", "train"),
        ("no/v.png", "validated", "validation"),
        ("no/x.png", "excluded", "excluded"),
        ("no/gone.png", "tested elsewhere", "test"),
    )
    scans = scans_of(
        ("no/t.png", "trained"),
        ("no/v.png", "validated"),
        ("no/copy-of-v.png", "validated"),
        ("no/x.png", "excluded"),
        ("no/new.png", "never seen"),
        ("no/v2.png", "validate"),
    )
    chosen = choose_scans(scans, split, None)
    assert [scan.file for scan in chosen.scans] == ["no/new.png", "no/v2.png"]
    assert chosen.left_out == {"train": 1, "validation": 2, "excluded": 1}
    assert chosen.warnings == ["4 images are known from the bundle's training and left out."]


def test_validation_images_alone_are_rejected(record):
    split = record(("no/v.png", "validated", "validation"))
    with pytest.raises(DataError, match=r"all 1 images are known .*validation 1"):
        choose_scans(scans_of(("no/other name.png", "validated")), split, None)


@pytest.mark.parametrize("role", ["train", "validation"])
def test_test_image_with_a_copy_in_training_is_reported(record, role):
    split = record(("no/t.png", "one", "test"), ("no/copy.png", "one", role), ("no/u.png", "two", "test"))
    scans = scans_of(("no/t.png", "one"), ("no/copy.png", "one"), ("no/u.png", "two"))
    chosen = choose_scans(scans, split, None)
    assert len(chosen.scans) == 2
    assert chosen.left_out == {role: 1}
    assert chosen.warnings == ["1 of the test images are byte for byte among the training images as well."]


def test_role_all_counts_images_that_were_used_in_training(record):
    split = record(("no/t.png", "one", "train"), ("no/v.png", "two", "validation"), ("no/x.png", "three", "excluded"))
    scans = scans_of(("no/t.png", "one"), ("no/v.png", "two"), ("no/x.png", "three"), ("no/n.png", "new"))
    chosen = choose_scans(scans, split, "all")
    assert len(chosen.scans) == 4
    [warning] = chosen.warnings
    assert warning.startswith("2 OF THESE 4 IMAGES WERE IN TRAINING (train 1, validation 1)")


@pytest.mark.parametrize("order", [1, -1])
def test_role_closest_to_training_wins_in_any_order(record, order):
    images = [("a.png", "one", "train"), ("b.png", "one", "validation"), ("c.png", "one", "excluded")]
    scans = scans_of(("no/copy.png", "one"), ("no/new.png", "new"))
    assert choose_scans(scans, record(*images[::order]), None).left_out == {"train": 1}
    assert choose_scans(scans, record(*images[1:][::order]), None).left_out == {"validation": 1}


def test_part_of_the_test_images_is_not_scored_as_the_test(record):
    split = record(("no/t.png", "one", "test"), ("no/u.png", "two", "test"))
    scans = scans_of(("no/t.png", "one"), ("no/n.png", "new"))
    with pytest.raises(DataError, match="not all of the 2 test images"):
        choose_scans(scans, split, "test")
    assert choose_scans(scans, split, None).what == "images that were not in training (compared by SHA-256)"


def test_other_images_are_counted_in_a_warning(record):
    split = record(("no/t.png", "one", "test"), ("no/u.png", "two", "train"))
    scans = scans_of(("no/t.png", "one"), ("no/n.png", "new"), ("no/m.png", "newer"), ("no/u.png", "two"))
    chosen = choose_scans(scans, split, None)
    assert [scan.file for scan in chosen.scans] == ["no/t.png"]
    assert chosen.left_out == {"unknown": 2, "train": 1}
    [warning] = chosen.warnings
    assert warning.startswith("2 images that are not in the bundle's split record are not scored")


def test_test_image_in_the_folder_of_another_label_is_reported(record):
    [scan] = scans_of(("yes/t.png", "one"))
    moved = Scan(scan.path, scan.file, "yes", 1, scan.sha256)
    chosen = choose_scans([moved], record(("no/t.png", "one", "test")), None)
    assert chosen.warnings == ["1 images are in the folder of another label than in the bundle's record."]
    assert choose_scans([scan], record(("yes/t.png", "one", "test")), None).warnings == []


def test_copy_with_the_recorded_name_is_scored():
    split = Split((SplitImage("no/b.png", sha("one"), 0, "test"),))
    scans = scans_of(("no/a.png", "one"), ("no/b.png", "one"), ("no/c.png", "one"))
    chosen = choose_scans(scans, split, None)
    assert [scan.file for scan in chosen.scans] == ["no/b.png"]
    assert chosen.left_out == {"test": 2}


@pytest.mark.parametrize("slim", [False, True], ids=["whole", "slim"])
def test_validation_images_in_a_mixed_folder_are_not_scored(tiny_bundle, tmp_path, slim):
    """Two of five pictures chose the threshold, one of them under another name."""
    data = tmp_path / "data" / "yes"
    data.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(5):
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(data / f"{index}.png")
    images = tuple(SplitImage(f"yes/{i}.png", sha256_of(data / f"{i}.png"), 1, "validation") for i in (1, 3))
    with rewrite_bundle(Bundle.open(tiny_bundle)) as writer:
        writer.add_document(SPLIT, Split(images).to_json())
    if slim:
        out = tmp_path / "slim"
        assert run(["bundle", "slim", str(tiny_bundle), "--artifact", "model.onnx", "--out", str(out)]) == 0
        tiny_bundle = out
    shutil.move(data / "3.png", data / "renamed.png")
    shutil.copy(data / "1.png", data / "copy.png")
    found = evaluate(Bundle.open(tiny_bundle), data.parent)
    assert {prediction["file"] for prediction in found["predictions"]} == {"yes/0.png", "yes/2.png", "yes/4.png"}
    assert found["data"]["left_out"] == {"validation": 3}
    assert found["metrics"]["accuracy"]["images"] == 3
