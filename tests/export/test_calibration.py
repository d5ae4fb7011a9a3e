"""Calibration: which images are drawn or refused, ranges, memory, and the search for a recipe."""

from __future__ import annotations

import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mri_edge.errors import DataError
from mri_edge.export.calibration import calibrator as calibration
from mri_edge.export.calibration.calibrator import SEARCHED, Calibrator
from mri_edge.export.calibration.images import (
    digest,
    draw,
    pictures_in,
    read_batches,
    read_resized,
    record,
    refuse_test_images,
)
from mri_edge.export.calibration.observation import BINS, Histogram
from mri_edge.scans.preprocessing import Preprocessing

SMALL = Preprocessing(16, 16)


def paths(*sizes):
    return [(Path(f"{group}/{index}"), group) for group, size in enumerate(sizes) for index in range(size)]


def test_draw_is_proportional_to_each_group_and_repeatable_by_seed():
    files = paths(30, 60, 10)
    drawn = draw(files, 20, seed=4)
    groups = dict(files)
    assert [sum(groups[index] == group for index in drawn) for group in range(3)] == [6, 12, 2]
    assert draw(files, 20, seed=4) == drawn
    assert draw(files, 20, seed=5) != drawn


@pytest.mark.parametrize("count", [1, 7, 100, 1000])
def test_draw_takes_exactly_the_requested_count(count):
    assert len(set(draw(paths(33, 67), count, seed=0))) == min(count, 100)


def test_record_depends_on_contents_and_not_on_names(pictures, tmp_path):
    files = [path for path, _ in pictures_in(pictures)][:5]
    copies = [Path(shutil.copy(path, tmp_path / f"{9 - index}.png")) for index, path in enumerate(files)]
    assert record(files, "minmax", 0) == record(copies, "minmax", 0)
    assert record(files[:4], "minmax", 0).fingerprint != record(files, "minmax", 0).fingerprint


def test_a_test_image_under_another_name_and_format_is_refused(pictures, tmp_path):
    files = [path for path, _ in pictures_in(pictures)][:3]
    tests = {digest(read_resized(path, SMALL)): path for path in files}
    copy = tmp_path / "copy.bmp"
    Image.open(files[1]).save(copy)
    refuse_test_images([path for path, _ in pictures_in(pictures)][3:], tests, SMALL)
    with pytest.raises(DataError, match=r"copy\.bmp: is the test image .*01\.png"):
        refuse_test_images([copy], tests, SMALL)


def test_missing_empty_and_damaged_calibration_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        pictures_in(tmp_path / "missing")
    with pytest.raises(DataError, match="contains no picture"):
        pictures_in(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(DataError, match=r"broken\.png"):
        list(read_batches([tmp_path / "broken.png"], SMALL))


def test_minmax_is_exact_and_contains_zero():
    histogram = Histogram()
    for values in ([3.0, 7.5], [1.0, 11.25]):
        histogram.add(np.array(values, np.float32))
    assert histogram.minmax() == (0.0, 11.25)


def test_histogram_equals_numpys_for_values_in_any_order():
    values = np.random.default_rng(0).normal(0, 3, 100_000).astype(np.float32)
    order = np.sort(np.abs(values))  # increasing, so that the range must double many times
    histogram = Histogram()
    for part in np.array_split(order * np.sign(values), 50):
        histogram.add(part)
    edges = np.linspace(-histogram.limit, histogram.limit, 2 * BINS + 1)
    expected, _ = np.histogram(order * np.sign(values), edges)
    assert histogram.counts.sum() == 100_000
    # A value on an edge may fall on either side, because bins are computed in float32.
    assert np.abs(np.cumsum(histogram.counts) - np.cumsum(expected)).max() <= 5


def test_percentile_equals_numpys_within_one_bin():
    values = np.random.default_rng(1).standard_t(3, 400_000).astype(np.float32)
    histogram = Histogram()
    histogram.add(values)
    width = histogram.limit / BINS
    assert histogram.percentile() == pytest.approx(np.percentile(values, (0.01, 99.99)), abs=1.01 * width)


def test_entropy_excludes_an_outlier_that_minmax_includes():
    values = np.append(np.random.default_rng(2).normal(0, 1, 200_000), 60.0).astype(np.float32)
    histogram = Histogram()
    histogram.add(values)
    low, high = histogram.entropy()
    assert histogram.minmax()[1] == 60
    assert 3 < high < 20
    assert -20 < low < -3


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_a_tensor_of_zeros_has_an_empty_range(method):
    histogram = Histogram()
    histogram.add(np.zeros(10, np.float32))
    assert getattr(histogram, method)() == (0.0, 0.0)


def test_memory_does_not_grow_with_the_number_of_images(pictures):
    picture = next(path for path, _ in pictures_in(pictures))

    def peak(count):
        calibrator = Calibrator((picture,) * count, Preprocessing(64, 64), record([picture], "minmax", 0))
        tracemalloc.start()
        observations = calibrator.observe(lambda batch: {"pixels": batch.astype(np.float32)}, channel_axis=-1)
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert observations["pixels"].range("minmax")[1] > 0
        return highest

    peak(16)  # allocates Pillow's own tables
    # 5,000 pictures are 61 MB of pixels. A tolerance of 10% covers the allocator, not the pictures.
    assert peak(5000) < 1.1 * peak(50)


def test_search_does_not_choose_a_candidate_that_answers_nan(pictures, monkeypatch):
    def answers(content, suffix, batches):
        return np.full((1, 2), {b"first": np.nan, b"reference": 0.5}.get(content, 0.6))

    def build(recipe):
        return (b"first" if recipe == SEARCHED[0] else b"other"), {}

    monkeypatch.setattr(calibration, "_probabilities", answers)
    picture = next(path for path, _ in pictures_in(pictures))
    calibrator = Calibrator((picture,), SMALL, record([picture], "search", 0), held_out=(picture,))
    content, facts = calibrator.build_best(build, b"reference", ".onnx")
    assert content == b"other"
    assert [candidate["mean_difference"] for candidate in facts["search"]["tried"]][:2] == [None, pytest.approx(0.1)]
