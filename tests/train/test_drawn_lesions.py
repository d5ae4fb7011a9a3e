"""Drawn lesions lie where their mask says, have their look, and do not depend on the generator of the training."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy", reason="needs the extra 'evaluate'")
from scipy import ndimage

from mri_edge.train.evaluation import drawn_lesions
from mri_edge.train.evaluation.drawn_lesions import LOOKS, draw_lesion, head_mask

SIDE = 120


def phantom(shape=(SIDE, SIDE), level=100, seed=0) -> np.ndarray:
    """An elliptical head of one level with noise, with a bright skull, in the air."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    distance = np.hypot((rows - shape[0] / 2) / (0.44 * shape[0]), (columns - shape[1] / 2) / (0.38 * shape[1]))
    noise = np.random.default_rng(seed).normal(0, 3, shape)
    return np.where(distance < 1, np.where(distance > 0.94, 150, level) + noise, 0).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("look", LOOKS)
def test_only_the_lesion_changes(look):
    gray = phantom()
    for seed in range(10):
        drawn = draw_lesion(np.random.default_rng(seed), gray, look)
        change = np.abs(drawn.gray.astype(int) - gray)
        assert drawn.look == look
        assert drawn.mask.sum() > 20
        assert change[drawn.mask].mean() > 5 * max(change[~ndimage.binary_dilation(drawn.mask, iterations=6)].mean(), 1)
        assert ndimage.label(drawn.mask, np.ones((3, 3)))[1] == 1
        assert head_mask(gray)[drawn.mask].all()


def test_looks_differ_as_their_names_say():
    gray = phantom()

    def mean_of(look, part):
        """The mean level of a part of the lesions, and the mean size of the lesions."""
        levels, sizes = [], []
        for seed in range(30):
            drawn = draw_lesion(np.random.default_rng(seed), gray, look)
            depth = ndimage.distance_transform_edt(drawn.mask)
            chosen = depth >= 0.8 * depth.max() if part == "core" else (depth > 0) & (depth <= 0.35 * depth.max())
            levels.append(drawn.gray[chosen].mean())
            sizes.append(drawn.mask.sum())
        return np.mean(levels), np.mean(sizes)

    assert mean_of("ring", "core")[0] < 90
    assert mean_of("ring", "rim")[0] > 115
    assert mean_of("solid", "core")[0] > 125
    assert mean_of("dark", "core")[0] < 70
    assert mean_of("small", "core")[1] < 0.5 * mean_of("solid", "core")[1] < mean_of("edema", "core")[1]


def test_edge_lesions_are_closer_to_the_skull():
    depth = ndimage.distance_transform_edt(head_mask(phantom()))

    def least_depth(look):
        return np.mean(
            [depth[draw_lesion(np.random.default_rng(seed), phantom(), look).mask].min() for seed in range(20)]
        )

    assert least_depth("edge") < 0.5 * least_depth("solid")


def test_a_seed_gives_the_same_lesion_again():
    first, again, other = (draw_lesion(np.random.default_rng(seed), phantom(), "ring") for seed in (3, 3, 4))
    assert np.array_equal(first.gray, again.gray)
    assert np.array_equal(first.mask, again.mask)
    assert not np.array_equal(first.mask, other.mask)


@pytest.mark.parametrize("shape", [(60, 150), (300, 200)])
def test_lesions_scale_with_the_head(shape):
    gray = phantom(shape)
    proportions = [
        draw_lesion(np.random.default_rng(seed), gray, "solid").mask.sum() / head_mask(gray).sum() for seed in range(20)
    ]
    assert 0.01 < np.mean(proportions) < 0.1


@pytest.mark.parametrize("gray", [np.zeros((40, 40), np.uint8), np.eye(40, dtype=np.uint8) * 200])
def test_no_lesion_without_a_head(gray):
    assert all(draw_lesion(np.random.default_rng(0), gray, look) is None for look in LOOKS)


def test_head_is_filled_and_without_specks():
    gray = phantom()
    gray[50:60, 50:60] = 0  # a ventricle
    gray[3, 3] = 255
    head = head_mask(gray)
    assert head[50:60, 50:60].all()
    assert not head[3, 3]
    assert not head[:4].any()


def test_nothing_is_shared_with_the_lesions_of_the_training():
    imported = [
        node.module or ""
        for node in ast.walk(ast.parse(Path(drawn_lesions.__file__).read_text()))
        if isinstance(node, ast.ImportFrom)
    ]
    assert not any("transforms" in module for module in imported)
