"""Test that a known temperature and the best threshold are found, and that the model includes the temperature."""

from __future__ import annotations

import numpy as np
import pytest

from mri_edge.errors import DataError

keras = pytest.importorskip("keras", reason="needs the extra 'train'")

from mri_edge.train.evaluation import calibration


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_fit_temperature_recovers_a_known_temperature(temperature):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20000, 2))
    labels = (rng.random(len(logits)) < softmax(logits)[:, 1]).astype(int)
    found = calibration.fit_temperature(softmax(logits * temperature), labels)
    # 20,000 draws determine the slope of a logistic curve to about 2%.
    assert found == pytest.approx(temperature, rel=0.06)


def test_fit_temperature_does_not_depend_on_the_size_of_a_class():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (4000, 2))
    labels = (rng.random(len(logits)) < softmax(logits)[:, 1]).astype(int)
    order = np.concatenate([np.arange(len(labels)), np.repeat(np.flatnonzero(labels), 5)])
    probabilities = softmax(logits * 2)
    once, often = (calibration.fit_temperature(probabilities[i], labels[i]) for i in (np.arange(4000), order))
    assert often == pytest.approx(once, rel=3e-3)  # more images leave less doubt about each outcome


def test_model_with_built_in_temperature_gives_scaled_probabilities():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3, activation="softmax")])
    batch = np.random.default_rng(2).normal(size=(16, 5)).astype(np.float32)
    before = np.asarray(model.predict_on_batch(batch))
    calibration.build_in_temperature(model, 2.5)
    after = np.asarray(model.predict_on_batch(batch))
    # Both sides compute exponentials in float32.
    np.testing.assert_allclose(after, calibration.scale_probabilities(before, 2.5), atol=1e-6)
    assert np.abs(after - before).max() > 0.05


@pytest.mark.parametrize("seed", range(8))
def test_choose_threshold_is_the_best_with_the_target_sensitivity(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 120)
    scores = np.clip(rng.normal(0.35 + 0.3 * labels, 0.2), 0, 1).round(2)  # rounded, so that there are ties

    def rates(threshold: float) -> tuple[float, float]:
        called = scores >= threshold
        return called[labels == 1].mean(), (~called)[labels == 0].mean()

    found = calibration.choose_threshold(scores, labels)
    sensitivity, specificity = rates(found)
    assert sensitivity >= 0.95
    every = [rates(threshold) for threshold in np.linspace(0, 1, 1001)]
    best = max(a + b for a, b in every if a >= 0.95)
    assert sensitivity + specificity == pytest.approx(best)


def test_threshold_between_separate_classes_is_in_the_middle():
    scores, labels = np.array([0.1, 0.2, 0.8, 0.9]), np.array([0, 0, 1, 1])
    assert calibration.choose_threshold(scores, labels) == pytest.approx(0.5)


def test_single_class_has_no_threshold():
    with pytest.raises(DataError, match="one class"):
        calibration.choose_threshold(np.array([0.2, 0.4]), np.array([1, 1]))
