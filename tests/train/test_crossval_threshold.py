"""A cross-validation's threshold changes the figures that depend on it, from recorded predictions, and nothing else."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mri_edge.authoring.writer import rewrite_bundle
from mri_edge.bundles.bundle import EMBEDDED, Bundle
from mri_edge.bundles.split import Split
from mri_edge.cli import run
from mri_edge.errors import BundleError, DataError

pytest.importorskip("sklearn", reason="needs the extra 'evaluate'")

from mri_edge.train.crossval_threshold import OutOfFold, read_threshold, set_threshold
from mri_edge.train.evaluation.crossval_figures import threshold_for
from mri_edge.train.evaluation.intervals import GROUPED_WILSON

CHECKOUT = Path(__file__).resolve().parents[2]

RULE = "chosen by a test"


@pytest.fixture
def bundle(tmp_path):
    shutil.copytree(EMBEDDED / "small", tmp_path / "small")
    return Bundle.open(tmp_path / "small")


@pytest.fixture
def read(bundle, tmp_path):
    """Return a function that writes a record and reads its threshold."""

    def write_and_read(record, bundle=bundle):
        path = tmp_path / "crossval.json"
        path.write_text(record if isinstance(record, str) else json.dumps(record))
        return read_threshold(path, bundle)

    return write_and_read


def test_old_threshold_writes_the_same_bundle(bundle, tmp_path):
    same = OutOfFold(bundle.manifest.threshold, bundle.manifest.training.details["threshold_rule"], ())
    set_threshold(bundle, bundle.folder, same, overwrite=True)  # removes the score of the heatmaps
    bundle = Bundle.open(bundle.folder)
    before = {entry.file: bundle.read(entry) for entry in bundle.entries()}
    was = bundle.manifest
    for out, overwrite in ((tmp_path / "new", False), (bundle.folder, True)):
        set_threshold(bundle, out, same, overwrite=overwrite)
        again = Bundle.open(out)
        again.verify()
        now = again.manifest
        assert replace(now, documents=()) == replace(was, documents=())
        assert sorted(now.documents, key=lambda entry: entry.file) == sorted(
            was.documents, key=lambda entry: entry.file
        )
        assert {entry.file: again.read(entry) for entry in again.entries()} == before


@pytest.mark.parametrize("several", [False, True])
def test_folders_that_no_image_names_are_not_made_up(bundle, tmp_path, several):
    """A shipped bundle names its test images by hashes. If a label has two folders, nothing says in which they were."""
    content = json.loads((bundle.folder / "metrics.json").read_text())
    if several:
        content["folders"].append({**content["folders"][-1], "folder": "elsewhere/yes"})
    with rewrite_bundle(bundle) as writer:
        writer.add_document("metrics.json", json.dumps(content))
    set_threshold(Bundle.open(bundle.folder), tmp_path / "new", OutOfFold(0.5, RULE, ()), overwrite=False)
    again = json.loads((tmp_path / "new" / "metrics.json").read_text())
    assert [entry["folder"] for entry in again.get("folders", ())] == (
        [] if several else [entry["folder"] for entry in content["folders"]]
    )


@pytest.fixture(scope="module")
def committed():
    """The text of the committed record of the recipe of the bundle."""
    return (CHECKOUT / "docs" / "evidence" / "crossval" / "small-slices.json").read_bytes()


@pytest.fixture
def slices(committed):
    """The committed record of the recipe of the bundle."""
    return json.loads(committed)


def test_committed_records_choose_the_thresholds_of_the_included_models(slices, read, bundle):
    """The Makefile takes them. Their schedules may have entries that the recipe no longer knows, and the reverse."""
    assert read(slices).value == pytest.approx(bundle.manifest.threshold, abs=1e-6)  # records have 6 digits
    assert read(slices | {"schedule": {**slices["schedule"], "runs": 3}}).warnings == ()
    for name, record in (("lite", "lite-blocks"), ("vgg16", "robust-blocks")):
        model = Bundle.open(EMBEDDED / name)
        found = read_threshold(CHECKOUT / "docs" / "evidence" / "crossval" / f"{record}.json", model)
        assert (found.value, found.warnings) == (pytest.approx(model.manifest.threshold, abs=1e-6), ())


def test_threshold_of_another_model_or_schedule_is_rejected(slices, read):
    others = ({"recipe": "robust"}, {"positive": 0}, {"labels": ["a", "b"]}, {"positive": None})
    for other in (*others, {"schedule": {**slices["schedule"], "epochs": 2}}):
        with pytest.raises(DataError, match=f"of another {next(iter(other))}") as raised:
            read(slices | other)
    assert "Received: {'epochs': 2}, the bundle has {'epochs': 20}" in raised.value.problem


def test_schedule_of_a_head_training_is_compared(slices, bundle, read):
    """Its manifest has the schedule among other details of the training."""
    details = {"name": "reference", "batch": 32, "epochs": 1}
    training = replace(bundle.manifest.training, recipe="reference", details=details)
    bundle = replace(bundle, manifest=replace(bundle.manifest, training=training))
    record = slices | {"recipe": "reference", "schedule": {"epochs": 1, "batch": 32}}
    assert read(record, bundle).warnings == ()
    with pytest.raises(DataError, match="of another schedule"):
        read(record | {"schedule": {"epochs": 2, "batch": 32}}, bundle)


def test_unfinished_cross_validation_is_rejected(slices, read):
    with pytest.raises(DataError, match="not finished"):
        read(slices | {"folds_scored": [1]})


@pytest.mark.parametrize(("label", "needed"), [(0, 12), (1, 20)])
def test_too_few_independent_images_of_a_label_are_rejected(label, needed, slices, read):
    """As many are needed as for a recalibration; the images of a group count as one."""
    images = slices["images"]
    rows = list(zip(images["group"], images["label"], images["selectable"], strict=True))
    groups = sorted({group for group, own, may in rows if own == label and may})

    def keep(count):
        images["selectable"] = [int(may and (own != label or group in groups[:count])) for group, own, may in rows]

    keep(needed)
    assert read(slices).value
    keep(needed - 1)
    with pytest.raises(DataError, match=f"has {needed - 1} independent scans, too few"):
        read(slices)


def test_record_without_a_split_chooses_without_the_test_images_of_the_bundle(bundle, slices, read):
    """A bundle that has no record of its test images takes the threshold with a warning."""
    assert read(slices | {"split_fingerprint": None}).warnings == ()
    unknown = replace(bundle, manifest=replace(bundle.manifest, documents=()))
    assert "does not record a split" in read(slices | {"split_fingerprint": None}, unknown).warnings[0]
    with pytest.raises(DataError, match="of another split fingerprint"):
        read(slices | {"split_fingerprint": "0" * 64}, unknown)


def test_record_with_other_test_images_chooses_without_those_of_the_bundle(bundle, slices, read):
    """A cross-validation by blocks has another split than a bundle that was trained without --groups."""
    everyone = slices | {"split_fingerprint": "0" * 64}
    everyone["images"] |= {"selectable": [1] * 3975}
    tested = {image.sha256[:16] for image in Split.of_bundle(bundle).of("test")}
    assert len(tested & set(everyone["images"]["sha256"])) == 51
    expected = threshold_for(everyone, tested)
    assert 3800 < expected["images"] < 3975 - 51
    assert read(everyone) == OutOfFold(expected["value"], expected["rule"], ())


def test_record_of_other_images_is_rejected(slices, read):
    other = slices | {"split_fingerprint": "0" * 64}
    other["images"] |= {"sha256": ["0" * 16] * 3975}
    with pytest.raises(DataError, match="of other images than the bundle"):
        read(other)


@pytest.mark.parametrize("key", ["images", "folds", "folds_scored", "schedule"])
def test_an_incomplete_record_is_rejected(key, slices, read):
    for value in ([1], None, "1"):
        with pytest.raises(DataError):
            read(slices | {key: value, "split_fingerprint": "0" * 64})
    del slices[key]
    with pytest.raises(DataError, match="is no complete record"):
        read(slices)


def test_a_record_with_images_of_one_label_is_rejected(slices, read):
    slices["images"]["label"] = [1] * 3975
    with pytest.raises(DataError, match="has no threshold"):
        read(slices)


@pytest.mark.parametrize("text", ["", "{", "[]", "1", '{"threshold": NaN}', "[" * 100_000], ids=lambda text: text[:9])
def test_anything_else_is_rejected(text, read):
    with pytest.raises(DataError):
        read(text)


def test_a_missing_record_is_rejected(bundle, tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        read_threshold(tmp_path / "none.json", bundle)


def test_new_threshold_keeps_intervals_of_groups(bundle, tmp_path):
    known = json.loads((bundle.folder / "metrics.json").read_bytes())
    for index, image in enumerate(known["test"]):
        image["group"] = index // 6
    with rewrite_bundle(bundle) as writer:
        writer.add_document("metrics.json", json.dumps(known))
    set_threshold(Bundle.open(bundle.folder), tmp_path / "new", OutOfFold(0.3, RULE, ()))
    changed = json.loads((tmp_path / "new" / "metrics.json").read_bytes())
    assert changed["test"] == known["test"]
    assert {changed["metrics"][name]["method"] for name in ("accuracy", "sensitivity")} == {GROUPED_WILSON}


def test_new_threshold_changes_the_figures_that_depend_on_it(bundle, tmp_path):
    record = set_threshold(bundle, tmp_path / "new", OutOfFold(0.3, RULE, ()))
    assert record["original_threshold"] == bundle.manifest.threshold
    changed = Bundle.open(tmp_path / "new")
    changed.verify()
    manifest = changed.manifest
    assert json.loads(changed.manifest_bytes())["schema_version"] == 1  # every release knows a threshold
    assert (manifest.threshold, manifest.training.details["threshold_rule"]) == (0.3, RULE)
    assert manifest.title != bundle.manifest.title
    card = (changed.folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert f"at least 0.3, else the likeliest other label. The threshold: {RULE}." in card
    test = json.loads((changed.folder / "metrics.json").read_bytes())["test"]
    assert test == json.loads((bundle.folder / "metrics.json").read_bytes())["test"]
    right = np.mean([(row["probabilities"][1] >= 0.3) == (row["label"] == 1) for row in test])
    assert manifest.metrics["accuracy"].value == pytest.approx(right)
    assert manifest.metrics["auc"] == bundle.manifest.metrics["auc"]
    # Parity is the exporter's to count: until then the card says at which threshold it was.
    assert (changed.folder / "parity.json").read_bytes() == (bundle.folder / "parity.json").read_bytes()
    assert f"on the same images, counted at threshold {bundle.manifest.threshold:.4g}:" in card
    assert "'mri-edge export' counts it again" in record["warnings"][0]


@pytest.mark.parametrize("in_place", [False, True])
def test_a_report_at_another_threshold_is_left_out(bundle, tmp_path, in_place):
    with rewrite_bundle(bundle) as writer:
        for file in ("report/index.html", "report/roc.svg", "report/parity.html"):
            writer.add_document(file, "<p>sensitivity 0.903</p>")
    bundle = Bundle.open(bundle.folder)
    same = set_threshold(bundle, tmp_path / "same", OutOfFold(bundle.manifest.threshold, RULE, ()))
    assert same["warnings"] == []
    assert {entry.file for entry in Bundle.open(tmp_path / "same").entries()} == {
        entry.file for entry in bundle.entries()
    }
    out = bundle.folder if in_place else tmp_path / "new"
    record = set_threshold(bundle, out, OutOfFold(0.3, RULE, ()), overwrite=in_place)
    assert "report/ are left out" in record["warnings"][0]
    assert not (out / "report").exists()
    Bundle.open(out).verify()


def test_command_writes_a_new_unsigned_bundle(bundle, slices, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    slices["images"]["selectable"] = [index % 2 for index in range(3975)]
    (tmp_path / "crossval.json").write_text(json.dumps(slices))
    value = threshold_for(slices, [])["value"]
    assert run(["recalibrate", "./small", "--crossval", "crossval.json"]) == 0
    printed, said = capfd.readouterr()
    assert f"threshold {value:.4g}; before: 0.9076" in printed
    assert "It is not signed. Sign it with" in printed
    assert "warning: The parity of the artifacts was counted at the threshold before" in said
    assert Bundle.open("small-recalibrated").manifest.threshold == value
    assert run(["recalibrate", "./small", "--crossval", "crossval.json"]) == 2
    assert "--overwrite" in capfd.readouterr().err
    assert run(["recalibrate", "./small", "--crossval", "crossval.json", "--out", "small/new"]) == 2
    assert "small/new: is inside" in capfd.readouterr().err
    assert run(["recalibrate", "./small", "--crossval", "crossval.json", "--overwrite", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["metrics"]["accuracy"]["images"] == 51


def test_bundles_that_cannot_have_it_are_rejected(bundle, tiny_bundle, tmp_path):
    found = OutOfFold(0.3, RULE, ())
    set_threshold(Bundle.open(tiny_bundle), tmp_path / "tiny-new", found)  # it has no figures to compute again
    assert Bundle.open(tmp_path / "tiny-new").manifest.threshold == 0.3
    manifest = bundle.manifest
    for other, words in (
        (replace(manifest, labels=("a", "b", "c")), "a threshold needs two labels"),
        (replace(manifest, documents=()), "has no metrics.json"),
        (replace(manifest, recalibration=object()), "is recalibrated"),
    ):
        with pytest.raises(BundleError, match=words):
            set_threshold(replace(bundle, manifest=other), tmp_path / "none", found)
    assert not (tmp_path / "none").exists()
