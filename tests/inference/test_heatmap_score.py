"""Heatmap pictures of an artifact with a low measured score are refused, for exactly that artifact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mri_edge.bundles.bundle import Bundle
from mri_edge.errors import UsageError
from mri_edge.inference.classifier import Classifier
from mri_edge.inference.heatmap.score import FIGURE, LEAST_SCORE, required_score
from mri_edge.testing import FakeEngine


@pytest.fixture
def scored(heatmap_score):
    """Return a function that makes a classifier of a bundle with a measured score."""

    def make(bundle: Path, value: float, *, sha256: str | None = None, figure: str = FIGURE) -> Classifier:
        manifest = Bundle.open(bundle).manifest
        score = heatmap_score(manifest.artifacts[0], value, sha256=sha256, figure=figure)
        opened = Bundle.from_manifest(bundle, replace(manifest, heatmaps=score).to_json().encode())
        return Classifier(opened, opened.manifest.artifacts[0], FakeEngine((128, 128, 3)))

    return make


def test_a_low_score_is_refused(scored, tiny_bundle):
    with scored(tiny_bundle, 0.55) as classifier, pytest.raises(UsageError) as caught:
        required_score(classifier)
    assert caught.value.problem.startswith("heatmaps of tiny 1 (")
    assert caught.value.problem.endswith(
        "), model.onnx, point at the lesion in 0.55 (0.45 to 0.60) of drawn lesions that it called, "
        "at least 0.8 is required"
    )
    assert "--artifact" in caught.value.hint


@pytest.mark.parametrize("value", [LEAST_SCORE, 0.95])
def test_a_sufficient_score_is_returned(scored, tiny_bundle, value):
    with scored(tiny_bundle, value) as classifier:
        score = required_score(classifier)
    assert score is not None
    assert score.value == value


def test_a_value_just_below_is_refused(scored, tiny_bundle):
    with scored(tiny_bundle, 0.7999) as classifier, pytest.raises(UsageError):
        required_score(classifier)


def test_the_score_of_another_artifact_does_not_count(scored, tiny_bundle):
    with scored(tiny_bundle, 0.1, sha256="f" * 64) as classifier:
        assert required_score(classifier) is None


def test_a_score_without_the_figure_does_not_count(scored, tiny_bundle):
    with scored(tiny_bundle, 0.1, figure="air") as classifier:
        assert required_score(classifier) is None


def test_a_bundle_without_a_score_is_accepted(tiny_bundle):
    with Classifier.load(tiny_bundle) as classifier:
        assert required_score(classifier) is None
