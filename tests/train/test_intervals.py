"""Test the grouped bootstrap: groups are drawn as a whole, and single-image groups change nothing."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs the extra 'train'")

from mri_edge.train.evaluation.intervals import RESAMPLES, bootstrap
from mri_edge.train.evaluation.metrics import weighted_auc


def weights_of(positive, group=None):
    return bootstrap(lambda weights: {str(i): weights[:, i] for i in range(len(positive))}, positive, group)


def test_groups_of_one_image_are_drawn_as_without_groups():
    positive = np.arange(20) % 3 == 0
    alone, grouped = weights_of(positive), weights_of(positive, 100 - np.arange(20)[::-1])
    for image, drawn in alone.items():
        np.testing.assert_array_equal(grouped[image], drawn)


def test_duplicated_images_do_not_narrow_an_interval():
    rng = np.random.default_rng(4)
    positive = rng.random(60) < 0.5
    score = rng.normal(positive, 1)
    area, twice = weighted_auc(positive, score), weighted_auc(positive.repeat(2), score.repeat(2))
    single = bootstrap(lambda weights: {"auc": area(weights)}, positive)["auc"]
    twins = bootstrap(lambda weights: {"auc": twice(weights)}, positive.repeat(2), np.arange(60).repeat(2))["auc"]
    np.testing.assert_allclose(twins, single, atol=1e-12)  # the same sums in another order


def test_groups_of_both_classes_are_drawn_whole_and_no_resample_lacks_a_class():
    group = np.array([7, 7, 7, 2, 2, 2, 5, 9])
    positive = np.array([1, 0, 0, 0, 1, 1, 1, 1], bool)
    drawn = np.stack(list(weights_of(positive, group).values()), axis=1)
    assert drawn.shape == (RESAMPLES, 8)
    assert all((drawn[:, group == number] == drawn[:, group == number][:, :1]).all() for number in (7, 2))
    np.testing.assert_array_equal(drawn[:, 0] + drawn[:, 3], 2)  # of the two mixed groups
    np.testing.assert_array_equal(drawn[:, 6] + drawn[:, 7], 2)  # of the two with one class
    assert (drawn @ ~positive > 0).all()
