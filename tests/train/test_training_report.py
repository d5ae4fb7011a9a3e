"""The report of a training with four labels, and of trainings without a history of epochs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="needs the extra 'train'")

from mri_edge.scans.preprocessing import Preprocessing
from mri_edge.train.data.labels import Labels
from mri_edge.train.evaluation.metrics import by_label, measure
from mri_edge.train.loops.head import Epoch, Images
from mri_edge.train.models.network import Network, build_network
from mri_edge.train.recipes.base import Head
from mri_edge.train.recipes.reference import REFERENCE
from mri_edge.train.reports.report import draw_report

NAMES = ("glioma", "meningioma", "no tumour", "pituitary")
RECIPE = replace(REFERENCE, name="toy", preprocessing=Preprocessing(height=32, width=32))


@pytest.fixture(scope="module")
def network() -> Network:
    """Two convolutions and a head for four labels."""
    inputs = keras.Input((32, 32, 3))
    features = keras.layers.Conv2D(4, 3, 4, "same", name="first")(inputs)
    backbone = keras.Model(inputs, keras.layers.Conv2D(8, 3, 2, "same", name="second")(features), name="toy")
    return build_network(backbone, Head(hidden=8, dropout=0.1), 0.01, len(NAMES), 0)


def images(labels: list[int]) -> Images:
    pixels = np.random.default_rng(0).integers(0, 255, (len(labels), 32, 32, 3), dtype=np.uint8)
    return Images(pixels, np.arange(len(labels)), np.array(labels))


def report(network: Network, truth: list[int], positive: int | None, **options: Any) -> tuple[dict[str, Any], Any]:
    """Return the files of a report of random answers, and these answers."""
    test = images(truth)
    probabilities = np.random.default_rng(1).dirichlet(np.ones(len(NAMES)), len(truth)).astype(np.float32)
    labels = Labels(NAMES, positive, {name: [name] for name in NAMES})
    metrics = measure(test.labels, probabilities, positive)
    options = {"history": (), **options}
    return draw_report(network, test, probabilities, metrics, labels=labels, recipe=RECIPE, compare=False, **options), (
        test.labels,
        probabilities,
    )


def test_report_names_four_labels_without_a_positive_one(network: Network) -> None:
    files, (truth, probabilities) = report(network, [0, 1, 2, 3] * 5, None, facts=[("Seed", "7")])
    page = files["report/index.html"]
    figures = by_label(truth, probabilities, probabilities.argmax(axis=1), NAMES)
    for name in NAMES:
        assert f"{name}: AUC {figures[name]['auc']['value']:.3f}" in page
        assert f"{name} called {name}" in page
        assert f"{figures[name]['sensitivity']['value']:.3f}" in page
    assert "20 (5 glioma, 5 meningioma, 5 no tumour, 5 pituitary)" in page
    assert "<dt>Seed</dt><dd>7</dd>" in page
    assert "AUC, mean of the labels" in page


def test_intervals_of_the_page_take_images_of_a_group_as_dependent(network: Network) -> None:
    group = np.repeat(np.arange(5), 4)
    files, (truth, probabilities) = report(network, [0, 1, 2, 3] * 5, None, group=group)
    for grouped in (None, group):
        area = by_label(truth, probabilities, probabilities.argmax(axis=1), NAMES, grouped)["glioma"]["auc"]
        text = f"glioma: AUC {area['value']:.3f} ({area['low']:.3f} to {area['high']:.3f})"
        assert (text in files["report/roc.svg"]) == (grouped is group)


def test_page_warns_of_test_images_among_the_training_images_and_names_its_methods(network: Network) -> None:
    warning = "byte for byte among the training images"
    files, _ = report(network, [0, 1, 2, 3] * 5, 2, copies=3)
    assert f"3 of the test images are {warning}" in files["report/index.html"]
    assert (
        "Intervals of accuracy, sensitivity, specificity, precision: Wilson score interval"
        in files["report/index.html"]
    )
    assert warning not in report(network, [0, 1, 2, 3] * 5, 2)[0]["report/index.html"]


def test_label_without_test_images_has_no_curve(network: Network) -> None:
    files, _ = report(network, [0, 1, 3] * 4, None)
    assert "pituitary: AUC" in files["report/roc.svg"]
    assert "no tumour" not in files["report/roc.svg"]


def test_only_one_label_in_the_test_images(network: Network) -> None:
    files, _ = report(network, [1] * 6, 1)
    assert "report/roc.svg" not in files
    assert "report/confusion-matrix.svg" in files


def test_curves_over_epochs_need_epochs(network: Network) -> None:
    without, _ = report(network, [0, 1, 2, 3], 1)
    history = [Epoch(number, 1 / number, 0.5, 1.5 / number, 0.25) for number in (1, 2)]
    with_epochs, _ = report(network, [0, 1, 2, 3], 1, history=history)
    assert set(with_epochs) - set(without) == {"report/accuracy.svg", "report/loss.svg"}
    assert "test images, last epoch: 0.750" in with_epochs["report/index.html"]


def test_report_shows_the_positive_image_above_its_maps(network: Network) -> None:
    files, _ = report(network, [0, 0, 2, 3], 2)
    page = files["report/index.html"]
    assert page.index("A test image, label no tumour") < page.index("first: 4 of 4 channels, 8 x 8 pixels")
    assert {"report/activation-01-first.png", "report/activation-02-second.png"} <= set(files)
