"""A new threshold changes the figures that depend on it, from the recorded predictions, and nothing else."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest

from mri_edge.bundles.bundle import EMBEDDED, Bundle

pytest.importorskip("sklearn")

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "set_threshold.py"
RULE = "chosen by a test"


@pytest.fixture
def bundle(tmp_path):
    shutil.copytree(EMBEDDED / "small", tmp_path / "small")
    return Bundle.open(tmp_path / "small")


@pytest.fixture
def script():
    return runpy.run_path(str(SCRIPT))


@pytest.fixture
def set_threshold(script):
    return script["set_threshold"]


def test_old_threshold_writes_the_same_bundle(bundle, set_threshold):
    before = {entry.file: bundle.path_of(entry).read_bytes() for entry in bundle.entries()}
    was = bundle.manifest
    now = set_threshold(bundle, was.threshold, was.training.details["threshold_rule"])
    assert (now.metrics, now.training, now.artifacts) == (was.metrics, was.training, was.artifacts)
    again = Bundle.open(bundle.folder)
    again.verify()
    after = {entry.file: again.path_of(entry).read_bytes() for entry in again.entries()}
    parity, known = json.loads(after.pop("parity.json")), json.loads(before.pop("parity.json"))
    for file, row in parity["artefacts"].items():  # the embedded record is older than these keys and this wording
        assert (row.pop("test_images"), row.pop("others")) == (51, None)
        assert len(row.pop("reasons")) == len(known["artefacts"][file].pop("reasons"))
    assert (after, parity) == (before, known)


def test_threshold_of_another_model_or_other_images_is_rejected(bundle, script):
    found = {"value": 0.4, "rule": RULE}
    crossval = {"recipe": "small", "labels": ["no tumour", "tumour"], "positive": 1, "threshold": found}
    crossval["split_fingerprint"] = bundle.manifest.training.split_fingerprint
    assert script["threshold_for"](bundle.manifest, crossval) == found
    others = ({"recipe": "robust"}, {"positive": 0}, {"labels": ["a", "b"]}, {"positive": None})
    for other in (*others, {"split_fingerprint": "0" * 64}, {"split_fingerprint": None}):
        with pytest.raises(SystemExit, match=f"of another {next(iter(other)).replace('_', ' ')}"):
            script["threshold_for"](bundle.manifest, crossval | other)


def test_new_threshold_changes_accuracy_but_not_differences_of_probabilities(bundle, set_threshold):
    known = json.loads((bundle.folder / "parity.json").read_bytes())
    set_threshold(bundle, 0.3, RULE)
    changed = Bundle.open(bundle.folder)
    changed.verify()
    manifest = changed.manifest
    assert (manifest.threshold, manifest.training.details["threshold_rule"]) == (0.3, RULE)
    assert f"at least 0.3, else the likeliest other label. The threshold: {RULE}." in (
        (bundle.folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    )
    test = json.loads((bundle.folder / "metrics.json").read_bytes())["test"]
    right = np.mean([(row["probabilities"][1] >= 0.3) == (row["label"] == 1) for row in test])
    assert manifest.metrics["accuracy"].value == pytest.approx(right)
    assert manifest.metrics["auc"] == bundle.manifest.metrics["auc"]
    parity = json.loads((bundle.folder / "parity.json").read_bytes())
    assert (parity["threshold"], parity["images"]) == (0.3, known["images"])
    for file, row in parity["artefacts"].items():
        assert row["max_logit_difference"] == known["artefacts"][file]["max_logit_difference"]
        assert row["probabilities"] == known["artefacts"][file]["probabilities"]
        hits = np.mean(
            [(p >= 0.3) == (image["label"] == 1) for p, image in zip(row["probabilities"], test, strict=True)]
        )
        assert row["accuracy"]["value"] == pytest.approx(hits)
