"""Figures of heatmaps on cases with a known answer, and faults that they must notice."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs the extra 'evaluate'")

from mri_edge.inference.prediction import HOT_SPOT
from mri_edge.train.data.folder import Scan
from mri_edge.train.evaluation import heatmap_score
from mri_edge.train.evaluation.heatmap_score import (
    Case,
    HealthyMap,
    by_look,
    center_map,
    choose_hot_spot,
    dilate,
    figures,
    judge,
    mask_to_grid,
    random_map,
    seed_of,
)
from mri_edge.train.evaluation.removal import FRACTIONS, Curves, mean_height, removal_curves

SIDE = 64


def scan_of(number: int) -> Scan:
    return Scan(Path(f"{number}.png"), f"{number}.png", ".", 0, hashlib.sha256(bytes([number])).hexdigest())


def disc(row: float, column: float, radius: float, side: int = SIDE) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side]
    return np.hypot(rows - row, columns - column) <= radius


HEAD = disc(32, 32, 26)


def map_with_peak(row: int, column: int) -> np.ndarray:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 50).astype(np.float32)


def case(number: int, peak: tuple[int, int] | None, *, called: bool = True, group: int | None = None) -> Case:
    """A lesion with radius 5 at (32, 20), and a map with its peak at a place, or an empty one."""
    level = np.array([0.9] + [0.1] * (len(FRACTIONS) - 1))
    flat = np.full(len(FRACTIONS), 0.9)
    return Case(
        scan=scan_of(number),
        number=0,
        group=number if group is None else group,
        look="solid",
        called=called,
        probability=0.9,
        gray=np.zeros((SIDE, SIDE), np.uint8),
        lesion=disc(32, 20, 5),
        head=HEAD,
        heatmap=np.zeros((SIDE, SIDE), np.float32) if peak is None else map_with_peak(*peak),
        aspect=1.0,
        curves={"heatmap": Curves(level, 1 - level), "random": Curves(flat, 1 - flat), "center": Curves(flat, 1 - flat)}
        if called
        else {},
    )


IN_LESION, BESIDE, FAR, AIR = (32, 20), (32, 28), (32, 50), (2, 2)


# --- one map


def test_peak_may_lie_a_little_beside_the_lesion():
    """The lesion ends at column 25. With 6% of 64 pixels, columns to 28 count."""
    for column, hit, strict in ((25, True, True), (26, True, False), (28, True, False), (29, False, False)):
        judged = judge(map_with_peak(32, column), disc(32, 20, 5), HEAD)
        assert (judged.peak, judged.hit, judged.strict_hit) == ((32, column), hit, strict)


def test_tolerance_is_relative_to_each_side():
    mask = np.zeros((50, 100), bool)
    mask[25, 50] = True
    rows, columns = np.nonzero(dilate(mask))
    assert (25 - rows.min(), rows.max() - 25, 50 - columns.min(), columns.max() - 50) == (3, 3, 6, 6)
    assert not dilate(np.zeros((5, 5), bool)).any()


def test_peak_in_the_air():
    assert judge(map_with_peak(*AIR), disc(32, 20, 5), HEAD).in_air
    assert not judge(map_with_peak(*FAR), disc(32, 20, 5), HEAD).in_air


def test_empty_map_points_nowhere():
    judged = judge(np.zeros((SIDE, SIDE), np.float32), HEAD, HEAD)
    assert (judged.peak, judged.hit, judged.strict_hit, judged.in_air, judged.mass) == (None, False, False, False, None)


def test_mass_is_the_proportion_of_the_sum():
    heat = np.zeros((SIDE, SIDE), np.float32)
    heat[32, 20], heat[32, 50], heat[33, 50] = 3, 1, -5  # what speaks against the label is no mass
    assert judge(heat, disc(32, 20, 5), HEAD).mass == pytest.approx(0.75)


def test_mask_of_another_framing_keeps_its_place():
    mask = np.zeros((200, 100), bool)
    mask[100:150, 20:40] = True
    rows, columns = np.nonzero(mask_to_grid(mask, (SIDE, SIDE)))
    assert (rows.min(), rows.max() + 1) == (32, 48)
    assert (columns.min(), columns.max() + 1) == pytest.approx((13, 26), abs=1)


# --- figures


def test_figures_of_known_cases():
    peaks = [IN_LESION] * 6 + [BESIDE] * 2 + [FAR, AIR]
    cases = [case(number, peak) for number, peak in enumerate(peaks)]
    cases[3:] = [replace(below, heatmap=0.9 * HOT_SPOT * below.heatmap) for below in cases[3:]]  # the others reach 1.0
    cases += [case(10 + number, peak, called=False) for number, peak in enumerate([FAR, IN_LESION, None, FAR])]
    healthy = [HealthyMap(number, HOT_SPOT if number < 2 else 0.9 * HOT_SPOT) for number in range(8)]
    found = figures(cases, healthy, HOT_SPOT)
    values = {
        "pointing_game": (0.8, 10),
        "pointing_game_not_called": (0.25, 4),
        "pointing_game_all": (9 / 14, 14),
        "strict_pointing_game": (0.6, 10),
        "strict_pointing_game_all": (0.5, 14),
        "air": (1 / 14, 14),
        "hot_spots": (0.3, 10),
        "false_spots": (0.25, 8),
        "deletion_minus_random": (mean_height(cases[0].curves["heatmap"].deletion) - 0.9, 10),
    }
    for name, (value, images) in values.items():
        assert (found[name].value, found[name].images) == (pytest.approx(value), images), name
    for name, metric in found.items():
        assert metric.low <= metric.value <= metric.high, name
    assert found["pointing_game"].low < 0.6
    assert found["pointing_game"].high > 0.9
    share = (disc(32, 20, 5) & HEAD).sum() / HEAD.sum()
    assert found["lesion_share"].value == pytest.approx(share)
    assert found["insertion_minus_center"].value > 0 > found["deletion_minus_center"].value
    assert figures(cases, healthy, 0.9 * HOT_SPOT)["hot_spots"].value == pytest.approx(1)
    looks = by_look(cases)
    assert looks["solid"]["called"].value == pytest.approx(10 / 14)
    assert looks["solid"]["pointing_game"].value == pytest.approx(0.8)
    assert looks["ring"] == {}


def test_lesions_of_one_group_are_not_independent():
    cases = [case(number, IN_LESION if number % 2 else FAR) for number in range(40)]
    alone = figures(cases, [], HOT_SPOT)
    grouped = figures([replace(one, group=number % 2) for number, one in enumerate(cases)], [], HOT_SPOT)
    fewer = figures([replace(one, group=number // 4) for number, one in enumerate(cases)], [], HOT_SPOT)
    width = {
        name: found["pointing_game"].high - found["pointing_game"].low
        for name, found in {"alone": alone, "grouped": grouped, "fewer": fewer}.items()
    }
    assert grouped["pointing_game"].value == 0.5
    assert width["alone"] <= width["fewer"] < width["grouped"]
    copies = figures([replace(each, group=0) for each in cases], [], HOT_SPOT)
    assert copies["pointing_game"].high - copies["pointing_game"].low > 0.8
    assert "mass_in_lesion" not in copies  # a single group has no spread


def test_mean_has_the_interval_of_its_groups():
    rng = np.random.default_rng(1)
    offset = np.repeat(rng.normal(0, 0.1, 12), 10)
    values = 0.5 + offset
    groups = np.repeat(np.arange(12), 10)
    everything = np.ones(120, bool)
    grouped = heatmap_score._mean(values, groups, everything)
    alone = heatmap_score._mean(values, np.arange(120), everything)
    assert grouped.value == alone.value == pytest.approx(values.mean())
    assert grouped.high - grouped.low > 2.5 * (alone.high - alone.low)


def test_few_groups_widen_the_interval_of_a_mean():
    """It covers the truth, here 0.5, as often as it says."""
    rng = np.random.default_rng(0)
    for groups in (2, 3, 5, 14):
        group = np.repeat(np.arange(groups), 4)
        found = [
            heatmap_score._mean(
                0.5 + 0.02 * rng.normal(size=groups)[group] + 0.02 * rng.normal(size=len(group)),
                group,
                np.ones(len(group), bool),
            )
            for _ in range(400)
        ]
        covered = np.mean([metric.low <= 0.5 <= metric.high for metric in found])
        assert covered == pytest.approx(0.95, abs=0.044)  # 4 standard deviations of 400 samples


def test_interval_of_a_mean_has_possible_values():
    """Student's t of two groups reaches far beyond them."""
    values, group, everything = np.array([0.1, 0.9]), np.arange(2), np.ones(2, bool)
    proportion = heatmap_score._mean(values, group, everything)
    assert (proportion.low, proportion.high) == (0, 1)
    difference = heatmap_score._mean(values - 0.5, group, everything, lowest=-1.0)
    assert (difference.low, difference.high) == (-1, 1)


def test_no_called_lesion_leaves_figures_out():
    found = figures([case(number, FAR, called=False) for number in range(5)], [], HOT_SPOT)
    assert "pointing_game" not in found
    assert "deletion" not in found
    assert "false_spots" not in found
    assert found["pointing_game_all"].value == 0


# --- reference maps


def test_reference_maps_stay_in_the_head_and_know_nothing():
    center = center_map(HEAD)
    assert np.unravel_index(center.argmax(), center.shape) == (32, 32)
    found = [random_map(np.random.default_rng(seed), HEAD) for seed in range(300)]
    assert all((heat[~HEAD] == 0).all() and heat[HEAD].min() > 0 for heat in [center, *found])
    hits = np.mean([judge(heat, disc(32, 20, 5), HEAD).hit for heat in found])
    assert hits == pytest.approx((dilate(disc(32, 20, 5)) & HEAD).sum() / HEAD.sum(), abs=0.06)


def test_a_seed_depends_on_the_scan_alone():
    seeds = {tuple(seed_of(scan_of(number), lesion)) for number in range(20) for lesion in (0, 1)}
    assert len(seeds) == 40
    assert seed_of(scan_of(3), 1) == seed_of(replace(scan_of(3), path=Path("elsewhere"), file="other.png"), 1)


# --- removal


def brightness(batch: np.ndarray) -> np.ndarray:
    """A model that reacts only to bright pixels: the fraction of the lesion's pixels that is bright."""
    return (batch[..., 0] > 200).sum(axis=(1, 2)) / disc(32, 20, 5).sum()


@pytest.fixture
def removed() -> dict[str, Curves]:
    """Curves of a perfect map, of an inverted one and of one that ignores the lesion."""
    gray = np.where(HEAD, 100, 0)
    gray[disc(32, 20, 5)] = 250
    pixels, fill = (np.repeat(level[..., None], 3, -1).astype(np.uint8) for level in (gray, np.where(HEAD, 100, 0)))
    perfect = map_with_peak(32, 20)
    maps = {"perfect": perfect, "inverted": 1 - perfect, "empty": np.zeros_like(perfect)}
    return removal_curves(pixels, maps, HEAD, fill, brightness)


def test_curves_begin_with_the_scan_and_with_the_filled_head(removed):
    for curves in removed.values():
        assert curves.deletion[0] == 1
        assert curves.insertion[0] == 0
        assert (np.diff(curves.deletion) <= 0).all()
        assert (np.diff(curves.insertion) >= 0).all()


def test_perfect_map_removes_and_restores_the_lesion_first(removed):
    at_five_percent = FRACTIONS.index(0.05)
    assert removed["perfect"].deletion[at_five_percent] == 0
    assert removed["perfect"].insertion[at_five_percent] == 1
    assert removed["inverted"].deletion[-1] == 1
    assert removed["inverted"].insertion[-1] == 0
    heights = {name: (mean_height(curves.deletion), mean_height(curves.insertion)) for name, curves in removed.items()}
    assert heights["perfect"][0] < 0.05
    assert heights["inverted"][0] > 0.95
    assert heights["perfect"][1] > 0.95


def test_mean_height_is_that_of_the_trapezoids():
    assert mean_height(np.array(FRACTIONS)) == pytest.approx(0.25)
    assert mean_height(np.full(len(FRACTIONS), 0.3)) == pytest.approx(0.3)


# --- the limit of a hot spot


def test_one_in_twenty_healthy_maps_may_have_a_hot_spot():
    healthy = [HealthyMap(number, number / 100) for number in range(1, 101)]
    limit = choose_hot_spot(healthy)
    assert limit == pytest.approx(1.0)  # above 0.96, rounded up
    assert sum(scan.maximum >= limit for scan in healthy) <= 5


@pytest.mark.parametrize("count", [20, 21, 39, 40, 60, 99, 100, 119, 120])
def test_limit_is_the_lowest_tenth_that_few_healthy_maps_reach(count):
    maxima = np.random.default_rng(count).permutation(count) / 5 + 0.05  # no two within a tenth
    limit = choose_hot_spot([HealthyMap(number, maximum) for number, maximum in enumerate(maxima)])
    assert np.sum(maxima >= limit) == count // 20
    assert np.sum(maxima >= limit - 0.1) > count // 20


def test_a_value_at_a_tenth_stays_below_the_limit():
    assert choose_hot_spot([HealthyMap(number, 0.5) for number in range(40)]) == pytest.approx(0.6)


def test_too_few_healthy_maps_choose_no_limit():
    assert choose_hot_spot([HealthyMap(number, 0.3) for number in range(19)]) is None
