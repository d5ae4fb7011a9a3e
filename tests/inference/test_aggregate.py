"""The score of a series needs neighboring slices that agree, so that one outlier neither makes nor breaks it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mri_edge.inference.aggregate import DEFAULT_RULE, Score, series_score, study_score

probability = st.floats(0, 1)


def score(*probabilities: float | None, distance: float = 5.0, **changes: float) -> Score | None:
    positions = [distance * number for number in range(len(probabilities))]
    return series_score(positions, probabilities, replace(DEFAULT_RULE, **changes))


def value(*probabilities: float | None, distance: float = 5.0) -> float | None:
    found = score(*probabilities, distance=distance)
    return None if found is None else found.value


def test_one_outlier_does_not_make_a_series_positive() -> None:
    assert value(0.1, 0.1, 0.99, 0.1, 0.1) == 0.1


def test_one_outlier_at_an_end_does_not_either() -> None:
    assert value(0.99, 0.1, 0.1, 0.1) == 0.1
    assert value(0.1, 0.1, 0.1, 0.99) == 0.1


def test_neighbors_that_agree_do_and_are_named() -> None:
    assert score(0.1, 0.2, 0.9, 0.8, 0.2) == Score(0.8, 1, 3)


def test_a_miss_inside_a_lesion_does_not_lower_it() -> None:
    assert value(0.1, 0.9, 0.0, 0.9, 0.1) == 0.9


def test_two_outliers_far_apart_do_not_add_up() -> None:
    assert value(0.9, 0.1, 0.1, 0.1, 0.9) == 0.1


def test_a_window_is_as_long_in_thin_slices_as_in_thick_ones() -> None:
    """Of slices 1 mm apart a window has 11, of which 6 must agree."""
    thin = [0.1] * 40
    assert value(*thin[:10], *[0.9] * 5, *thin, distance=1) == 0.1
    found = score(*thin[:10], *[0.9] * 6, *thin, distance=1)
    assert found is not None
    assert (found.value, found.last - found.first) == (0.9, 10)


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [((0.7,), 0.7), ((0.7, 0.2), 0.7), ((0.7, 0.2, 0.3), 0.3), ((None, 0.7, None), 0.7), ((), None), ((None,), None)],
)
def test_series_of_few_slices(probabilities: tuple[float | None, ...], expected: float | None) -> None:
    assert value(*probabilities) == expected


def test_a_thin_series_that_is_shorter_than_a_window_is_one_window() -> None:
    assert score(0.1, 0.9, 0.8, 0.7, distance=1) == Score(0.8, 0, 3)


def test_slices_without_an_answer_are_passed_over() -> None:
    assert value(0.1, 0.9, None, 0.8, 0.1) == 0.8


def test_slices_at_one_position_count_once() -> None:
    """Two repetitions of three positions: a flicker in one of them is averaged."""
    found = series_score([0, 0, 5, 5, 10, 10], [0.9, 0.1, 0.9, 0.1, 0.2, 0.2], DEFAULT_RULE)
    assert found == Score(0.5, 0, 5)


def test_slices_without_positions_are_counted() -> None:
    assert series_score([None] * 4, [0.1, 0.8, 0.9, 0.1], DEFAULT_RULE) == Score(0.8, 0, 2)


def test_a_bundle_may_set_the_window() -> None:
    assert score(0.1, 0.9, 0.1, 0.1, least_slices=1, window_mm=0) == Score(0.9, 1, 1)


@given(st.lists(probability, min_size=1, max_size=30), st.floats(0.5, 10))
def test_the_score_lies_between_the_lowest_and_the_highest_and_its_window_holds_it(
    probabilities: list[float], distance: float
) -> None:
    found = score(*probabilities, distance=distance)
    assert found is not None
    window = probabilities[found.first : found.last + 1]
    assert sum(probability >= found.value for probability in window) >= len(window) / 2
    assert found.value in window


@given(st.lists(probability, min_size=1, max_size=30), st.data())
def test_a_higher_slice_never_lowers_the_score(probabilities: list[float], data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(probabilities) - 1))
    raised = [*probabilities]
    raised[number] = data.draw(st.floats(raised[number], 1))
    before, after = value(*probabilities), value(*raised)
    assert before is not None
    assert after is not None
    assert after >= before


@given(st.lists(probability, min_size=1, max_size=30))
def test_the_order_from_feet_to_head_or_back_does_not_matter(probabilities: list[float]) -> None:
    assert value(*probabilities) == value(*reversed(probabilities))


@pytest.mark.parametrize(("scores", "expected"), [((), None), ((0.4,), 0.4), ((0.4, 0.6), 0.6), ((0.4, 0.9, 0.6), 0.6)])
def test_one_of_three_series_does_not_make_a_study_positive(scores: tuple[float, ...], expected: float | None) -> None:
    assert study_score(scores) == expected
