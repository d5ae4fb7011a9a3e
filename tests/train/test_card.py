"""Test the model card: its sections, its figures from the bundle, and its update with each change."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from mri_edge.authoring.card import CARD, card, to_markdown
from mri_edge.authoring.writer import rewrite_bundle
from mri_edge.bundles.bundle import Bundle
from mri_edge.bundles.manifest import Manifest, Metric, Parity
from mri_edge.bundles.split import SPLIT, Split, SplitImage

# M. Mitchell et al., "Model Cards for Model Reporting", FAT* 2019, figure 1
SECTIONS = [
    "Model Details",
    "Intended Use",
    "Factors",
    "Metrics",
    "Evaluation Data",
    "Training Data",
    "Quantitative Analyses",
    "Ethical Considerations",
    "Caveats and Recommendations",
]
MEASURED = {
    "confusion_matrix": [[3, 1], [0, 2]],
    "folders": [{"folder": "here/no", "label": 0, "value": 0.75, "low": 0.301, "high": 0.954, "images": 4}],
    "test": [
        {"file": "no/fair.png", "label": 0, "probabilities": [0.44, 0.56]},
        {"file": "no/w|<b>rong.png", "label": 0, "probabilities": [0.123, 0.877]},
        {"file": "yes/right.png", "label": 1, "probabilities": [0.1, 0.9]},
    ],
}


@pytest.fixture
def split() -> Split:
    roles = ["train", "train", "test", "test", "excluded"]
    # The first test image has the content of a training image.
    return Split(tuple(SplitImage(f"no/{i}.png", str(i % 2) * 64, 0, role) for i, role in enumerate(roles)))


@pytest.fixture
def carded(tiny_bundle: Path, split: Split) -> Path:
    """``tiny_bundle`` with metrics, a split record and a card."""
    metric = Metric(0.8125, 0.5501, 0.9406, 16, "Wilson score interval (Wilson 1927)")
    with rewrite_bundle(Bundle.open(tiny_bundle)) as writer:
        writer.update(metrics={"specificity": metric}, threshold=0.5678, limits="Only for tests.")
        writer.add_document("metrics.json", json.dumps(MEASURED))
        writer.add_document(SPLIT, split.to_json())
        writer.add_card()
    return tiny_bundle


def test_card_is_a_verified_document_of_the_bundle(carded):
    bundle = Bundle.open(carded)
    assert CARD in {document.file for document in bundle.manifest.documents}
    bundle.verify()


def test_sections_are_those_of_the_paper(carded):
    assert re.findall(r"^## (.*)$", (carded / CARD).read_text(), re.MULTILINE) == SECTIONS


def test_figures_come_from_the_bundle(carded):
    manifest = Bundle.open(carded).manifest
    text = (carded / CARD).read_text()
    assert "| specificity | 0.812 (0.550 to 0.941) | 16 |" in text
    assert "at least 0.5678" in text
    assert "| here/no | no | 0.750 (0.301 to 0.954) | 4 |" in text
    assert "| no | 3 | 1 |" in text
    assert "specificity: 0.812 (0.550 to 0.941), of 16 images" in text
    assert manifest.training.data_fingerprint in text
    assert manifest.creation.command in text
    assert "Only for tests." in text
    assert "not a medical device" in text


def test_card_reports_test_images_that_are_copies_of_training_images(carded):
    assert "2 of the test images are byte for byte among the training images" in (carded / CARD).read_text()


def test_mistakes_depend_on_the_threshold_of_the_manifest(tiny_manifest, split):
    """A healthy image with probability 0.56 is a mistake at a threshold of 0.5, but not at 0.5678."""
    for threshold, files in ((0.5678, ["no/w|<b>rong.png"]), (0.5, ["no/w|<b>rong.png", "no/fair.png"])):
        sections = card(replace(tiny_manifest, threshold=threshold), MEASURED, split)
        analyses = next(section for section in sections if section.title == "Quantitative Analyses")
        tables = [block for block in analyses.blocks if not isinstance(block, str) and block.heads[0] == "file"]
        assert [row[0] for row in tables[0].rows] == files


def test_file_names_cannot_break_the_table(carded):
    text = (carded / CARD).read_text()
    assert "| no/w\\|\\<b>rong.png | no | yes | 0.123 |" in text


def test_html_card_of_earlier_releases_is_removed(carded):
    with rewrite_bundle(Bundle.open(carded)) as writer:
        writer.add_document("MODEL_CARD.html", "<p>of an earlier release")
    assert not (carded / "MODEL_CARD.html").exists()
    assert [d.file for d in Bundle.open(carded).manifest.documents if d.file.endswith(".html")] == []


def test_card_is_updated_with_every_change_of_the_bundle(carded, tmp_path):
    bundle = Bundle.open(carded)
    assert "| model.onnx | float32 |" in (carded / CARD).read_text()
    with rewrite_bundle(bundle) as writer:
        artifact = replace(writer.manifest.artifacts[0], parity=Parity("met", 51, 1.2e-6, 1e-7, 3))
        writer.add_artifact(artifact)
    assert "| met | 1.2e-06 | 3 of 51 |" in (carded / CARD).read_text()
    kept = [document.file for document in bundle.manifest.documents]
    with rewrite_bundle(Bundle.open(carded), tmp_path / "slim", keep=kept):
        pass
    assert "model.onnx" not in (tmp_path / "slim" / CARD).read_text()
    Bundle.open(tmp_path / "slim").verify()


def test_rewriting_a_bundle_without_a_card_adds_none(tiny_bundle):
    with rewrite_bundle(Bundle.open(tiny_bundle)) as writer:
        writer.update(threshold=0.4)
    assert not (tiny_bundle / CARD).exists()


def test_card_of_a_manifest_without_figures(tiny_manifest: Manifest):
    sections = card(tiny_manifest, {}, None)
    text = to_markdown("Model card", sections)
    assert "No figures are recorded" in text
    assert "no record of single images" in text
