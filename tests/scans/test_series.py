"""Slices are grouped and sorted by what their headers say, and never by names or numbers."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mri_edge.errors import InputError
from mri_edge.scans.headers import slice_facts
from mri_edge.scans.series import Series, SliceFacts, group

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)


def a_slice(number: int, **changes: Any) -> SliceFacts:
    """Slice ``number`` of an axial series with 5 mm between slices."""
    facts = SliceFacts(
        source=f"{number}.dcm",
        kind="dicom",
        study="1.1",
        series="1.1.1",
        instance=f"1.1.1.{number}",
        orientation=AXIAL,
        position=(-100.0, -100.0, 5.0 * number),
        spacing=(0.9, 0.9),
        matrix=(256, 256),
        echo=20.0,
        image_type=("ORIGINAL", "PRIMARY"),
    )
    return replace(facts, **changes)


def only(slices: list[SliceFacts]) -> Series:
    (series,) = group(slices)
    return series


def codes(series: Series) -> dict[str, float | None]:
    return {warning.code: warning.value for warning in series.warnings}


@given(st.permutations(range(12)))
def test_slices_are_sorted_by_position_in_whatever_order_they_come(order: list[int]) -> None:
    series = only([a_slice(number) for number in order])
    assert [facts.source for facts in series.slices] == [f"{number}.dcm" for number in range(12)]
    assert series.positions == tuple(5.0 * number for number in range(12))
    assert (series.plane, series.distance, series.warnings) == ("axial", 5.0, ())


def test_thousands_of_echoes_are_split_in_little_time() -> None:
    """A copy stays with the part of its slice. Comparing every slice with every part took a minute."""
    slices = [a_slice(number, echo=float(number)) for number in range(4000)]
    start = time.process_time()
    parts = group([*slices, *slices])
    assert time.process_time() - start < 5
    assert [codes(part) for part in parts] == [{"copies": 1}] * 4000


@pytest.mark.parametrize(
    "facts",
    [
        lambda n: {"instance": "1.1.1", "position": (1.0 * n, -1.0 * n, 0.0)},
        lambda n: {"instance": "1.1.1", "position": (1.91 * n, 0.0, -1.0 * n)},
        lambda n: {"instance": "1.1.1", "matrix": (n, 7)},
        lambda n: {"instance": "1.1.1", "position": (0.0, 0.0, 1e9 + n)},
        lambda n: {"matrix": (n, 7)},
        lambda n: {"image_type": ("ORIGINAL", "PRIMARY", str(n))},
        lambda n: {"spacing": (1.02**n, 1.0)},
        lambda n: {"echo": 1e9 + n},
    ],
    ids=["plane", "tilted plane", "copies by matrix", "far away", "matrix", "image type", "spacing", "echo"],
)
def test_thousands_of_hostile_headers_are_grouped_in_little_time(facts: Callable[[int], dict[str, Any]]) -> None:
    """Comparing every slice with every other one took 6 to 42 seconds."""
    slices = [a_slice(number, **facts(number)) for number in range(4000)]
    start = time.process_time()
    found = group(slices)
    assert time.process_time() - start < 3
    assert sum(len(part.slices) for part in found) == 4000


@pytest.mark.parametrize("spacing", [(0.9, 0.9), (0.001, 10.0), (1e-30, 1e30)])
@pytest.mark.parametrize("factor", [0.991, 1.0, 1.009])
def test_spacings_are_compared_with_a_tolerance(spacing: tuple[float, float], factor: float) -> None:
    other = (spacing[0] * factor, spacing[1] * factor)
    assert len(group([a_slice(0, spacing=spacing), a_slice(1, spacing=other)])) == 1


@pytest.mark.parametrize(("echo", "other", "parts"), [(20.0, 20.04, 1), (19.99, 20.02, 1), (20.0, 20.1, 2)])
@pytest.mark.parametrize("sign", [1, -1])
def test_echoes_are_compared_with_a_tolerance(echo: float, other: float, parts: int, sign: int) -> None:
    assert len(group([a_slice(0, echo=sign * echo), a_slice(1, echo=sign * other)])) == parts


@pytest.mark.parametrize("echo", [1e308, -1e308, 1e9])
def test_absurd_echoes_are_grouped(echo: float) -> None:
    assert [len(part.slices) for part in group([a_slice(0, echo=echo), a_slice(1), a_slice(2, echo=echo)])] == [2, 1]


def test_positions_of_oblique_slices_are_along_their_normal() -> None:
    """The normal of this series is turned by 30 degrees, so 4 mm up along z are 2 * sqrt(3) mm along it."""
    sine, cosine = 0.5, 3**0.5 / 2
    tilted = (1.0, 0.0, 0.0, 0.0, cosine, sine)
    series = only([a_slice(n, orientation=tilted, position=(0.0, 0.0, 4.0 * n)) for n in (2, 0, 1)])
    assert series.distance == pytest.approx(4 * cosine)
    assert series.plane == "axial"


def test_mirrored_rows_do_not_reverse_the_order() -> None:
    mirrored = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    assert [f.source for f in only([a_slice(n, orientation=mirrored) for n in (1, 0)]).slices] == ["0.dcm", "1.dcm"]


@pytest.mark.parametrize(
    "change",
    [
        {"orientation": CORONAL},
        {"orientation": None, "position": None},
        {"spacing": (0.5, 0.5)},
        {"spacing": None},
        {"matrix": (512, 512)},
        {"echo": 80.0},
        {"echo": None},
        {"image_type": ("ORIGINAL", "PRIMARY", "P")},
        {"position": None},
    ],
)
def test_a_series_is_split_where_its_slices_differ(change: dict[str, Any]) -> None:
    parts = group([a_slice(0), a_slice(1, **change), a_slice(2), a_slice(3, **change)])
    assert [(part.part, part.parts, len(part.slices)) for part in parts] == [(1, 2, 2), (2, 2, 2)]


def test_rounded_header_values_do_not_split_a_series() -> None:
    nearly = (1.0, 0.0001, 0.0, -0.0001, 0.99999, 0.0)
    assert len(only([a_slice(0), a_slice(1, orientation=nearly, spacing=(0.9001, 0.9), echo=20.01)]).slices) == 2


def test_series_and_studies_are_kept_apart() -> None:
    slices = [a_slice(n, study=f"1.{n % 2}", series=f"2.{n % 4}", instance=f"3.{n}") for n in range(8)]
    random.Random(0).shuffle(slices)
    assert sorted((s.study, s.uid, len(s.slices)) for s in group(slices)) == [
        ("1.0", "2.0", 2),
        ("1.0", "2.2", 2),
        ("1.1", "2.1", 2),
        ("1.1", "2.3", 2),
    ]


def test_a_gap_is_reported_with_the_number_of_missing_slices() -> None:
    series = only([a_slice(n) for n in (0, 1, 2, 5, 6, 8, 9)])
    assert codes(series) == {"gap": 3}
    assert "10.0 to 25.0 mm, 30.0 to 40.0 mm" in str(series.warnings[0])


def test_a_copy_under_another_name_is_left_out() -> None:
    series = only([a_slice(0), a_slice(1), a_slice(1, source="copy of 1.dcm")])
    assert len(series.slices) == 2
    assert codes(series) == {"copies": 1}
    assert "copy of 1.dcm" in str(series.warnings[0])


def test_slices_that_share_an_identifier_at_other_positions_are_kept() -> None:
    series = only([a_slice(number, instance="1.1.1") for number in range(20)])
    assert len(series.slices) == 20
    assert codes(series) == {"repeated_identifiers": 19}
    assert len(group([a_slice(0, instance="1.1.1"), a_slice(0, instance="1.1.1", matrix=(128, 128))])) == 2


def test_rounded_positions_make_no_copy_another_slice() -> None:
    series = only([a_slice(1), a_slice(1, source="copy of 1.dcm", position=(-100.0, -99.99, 4.99))])
    assert codes(series) == {"copies": 1}


def test_thousands_of_slices_that_share_an_identifier_are_kept_in_little_time() -> None:
    start = time.perf_counter()
    assert len(only([a_slice(number, instance="1.1.1") for number in range(4000)]).slices) == 4000
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_two_copies_the_one_that_can_be_read_is_kept(order: tuple[int, int]) -> None:
    copies = [a_slice(1), a_slice(1, source="cut off.dcm", refusal=InputError("ends early", code="damaged"))]
    series = only([copies[number] for number in order])
    assert [facts.source for facts in series.slices] == ["1.dcm"]
    assert "cut off.dcm" in str(series.warnings[0])


def test_two_slices_at_one_position_are_kept_and_reported() -> None:
    series = only([a_slice(n, instance=f"{n}.{t}", source=f"{n}-{t}") for t in range(2) for n in range(3)])
    assert len(series.slices) == 6
    assert codes(series) == {"repeated_positions": 3}
    assert series.distance == 5


def test_without_positions_the_order_of_the_files_stays() -> None:
    series = only([a_slice(n, position=None, orientation=None) for n in (2, 0, 1)])
    assert [facts.source for facts in series.slices] == ["2.dcm", "0.dcm", "1.dcm"]
    assert (series.positions, series.distance, series.plane) == ((None,) * 3, None, None)
    assert "no_positions" in codes(series)


@pytest.mark.parametrize("orientation", [(0.0,) * 6, (1.0, 0.0, 0.0, 1.0, 0.0, 0.0), (float("nan"),) * 6])
def test_directions_that_span_no_plane_count_as_none(orientation: tuple[float, ...]) -> None:
    series = group([a_slice(n, orientation=orientation) for n in range(2)])
    assert all(part.plane is None and set(part.positions) == {None} for part in series)


def test_pictures_and_files_without_a_series_are_series_of_their_own() -> None:
    pictures = [SliceFacts("a.jpg"), SliceFacts("b.jpg"), a_slice(0, series=None), a_slice(1, series=None)]
    assert [len(series.slices) for series in group(pictures)] == [1, 1, 1, 1]


def test_frames_of_one_file_are_sorted_too() -> None:
    frames = [a_slice(3 - i, source="enhanced.dcm", instance="1.9", index=i, count=4) for i in range(4)]
    assert [facts.index for facts in only(frames).slices] == [3, 2, 1, 0]


def test_one_position_for_all_frames_of_a_file_is_none_for_each() -> None:
    frames = [a_slice(0, source="old.dcm", index=i, count=4) for i in range(4)]
    series = only(frames)
    assert series.positions == (None,) * 4
    assert set(codes(series)) == {"no_positions"}


@pytest.mark.parametrize(("orientation", "plane"), [(AXIAL, "axial"), (CORONAL, "coronal"), (SAGITTAL, "sagittal")])
def test_the_plane_is_named(orientation: tuple[float, ...], plane: str) -> None:
    assert only([a_slice(0, orientation=orientation)]).plane == plane


def test_headers_are_read_and_errors_keep_their_place(write_slices, tmp_path) -> None:
    good = write_slices("good.slices", 10, 20)
    bad = tmp_path / "bad.slices"
    bad.write_text("no header")
    missing = InputError("missing", source="missing.jpg")
    picture = tmp_path / "picture.jpg"
    picture.write_bytes(b"not opened")
    found = list(slice_facts([str(good), str(bad), missing, "gone.jpg", str(picture)]))
    assert [type(item).__name__ for item in found] == ["SliceFacts"] * 2 + ["InputError"] * 3 + ["SliceFacts"]
    assert [item.source for item in found] == [str(good)] * 2 + [str(bad), "missing.jpg", "gone.jpg", str(picture)]
    assert isinstance(found[-1], SliceFacts)
    assert found[-1].kind is None
