"""Make the cases of a heatmap score: draw lesions in scans that the model calls healthy, and explain its answers."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_edge.errors import InputError
from mri_edge.inference.classifier import Classifier
from mri_edge.inference.covering import Head
from mri_edge.inference.prediction import Failure, Prediction, recalibrated
from mri_edge.scans import readers
from mri_edge.scans.frame import Pixels, not_one_frame
from mri_edge.scans.framing import to_gray
from mri_edge.train.data.duplicates import difference_hash
from mri_edge.train.data.folder import Scan
from mri_edge.train.data.grouping import BLOCK_SIZE, Grouping, GroupRule, group_scans
from mri_edge.train.data.order import measure_order, thumbnail

from .drawn_lesions import LOOKS, DrawnLesion, Gray, Look, Mask, draw_lesion, head_mask
from .heatmap_score import Case, HealthyMap, Heat, mask_to_grid, reference_maps, seed_of
from .removal import Curves, removal_curves

Track = Callable[[Iterable[Any], str, int], Iterable[Any]]

# The look of each lesion of a scan, counted from the look of its first one: any two neighbors differ widely.
_NEXT_LOOKS = (0, 3, 1, 4, 2, 5)
_LEAST_HEAD = 0.2  # of the picture; a lesion in a smaller head would be a few pixels of the network's input
_LEAST_LESION = 12 / 128**2  # of the network's input; smaller lesions are drawn again
_TRIES = 50
_BATCH = 8  # the classifier decodes three batches ahead, and keeps each picture until it is hashed


@dataclass(frozen=True)
class CalledHealthy:
    """The scans that the model calls healthy, and their groups; how many have another answer; those not read."""

    scans: list[Scan]
    grouping: Grouping
    called: Counter[str]
    failures: list[tuple[Scan, InputError]]


@dataclass(frozen=True)
class Explained:
    """The maps of the lesions and of the scans without a lesion; scans without a head, and those not read."""

    cases: list[Case]
    healthy: list[HealthyMap]
    without_head: int
    failures: list[tuple[Scan, InputError]]


@dataclass(frozen=True)
class _Picture:
    """A picture to explain, and what is known about it on the grid of the network's input.

    ``look`` is None for the scan without a lesion; ``lesion`` is empty then. ``healthy`` uint8 (H, W, 3) is the input
    without the lesion.
    """

    scan: Scan
    group: int
    number: int
    look: Look | None
    pixels: Pixels
    healthy: Pixels
    lesion: Mask
    head: Mask
    aspect: float


def classify_healthy(
    classifier: Classifier, scans: Sequence[Scan], healthy: Collection[str], track: Track
) -> CalledHealthy:
    """Classify scans, and keep those to which the model gives one of the labels ``healthy``.

    A scan that has another answer without a lesion says nothing about lesions. Scans are grouped by near-duplicates,
    and by blocks of file numbers where these carry identity.
    """
    kept: list[Scan] = []
    hashes, thumbnails = [], []
    called: Counter[str] = Counter()
    failures: list[tuple[Scan, InputError]] = []
    results = classifier.predict_batches([scan.path for scan in scans], batch_size=_BATCH, keep_pixels=True)
    by_path = {str(scan.path): scan for scan in scans}
    for result in track(results, "classify", len(scans)):
        scan = by_path[result.source]
        if isinstance(result, Failure) or result.frames != 1:
            if result.index == 0:
                error = result.error if isinstance(result, Failure) else not_one_frame(scan.path, result.frames)
                failures.append((scan, error))
        elif result.label not in healthy:
            called[result.label] += 1
        else:
            kept.append(scan)
            hashes.append(difference_hash(result.pixels))
            thumbnails.append(thumbnail(result.pixels))
    if not kept:
        return CalledHealthy([], Grouping(np.zeros(0, np.intp), ""), called, failures)
    order = measure_order(kept, np.stack(thumbnails))
    grouping = group_scans(kept, np.stack(hashes), order, GroupRule(BLOCK_SIZE))
    return CalledHealthy(kept, grouping, called, failures)


def choose_rows(scans: Sequence[Scan], group: NDArray[np.intp], limit: int) -> list[int]:
    """Choose at most ``limit`` scans, from as many groups as possible.

    Groups, and the scans of a group, are taken in the order of their SHA-256: that is a random order, and it hardly
    changes when scans are added.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for row in sorted(range(len(scans)), key=lambda row: scans[row].sha256):
        members[int(group[row])].append(row)
    chosen: list[int] = []
    round_number = 0
    while len(chosen) < min(limit, len(scans)):
        chosen += [rows[round_number] for rows in members.values() if len(rows) > round_number]
        round_number += 1
    return chosen[:limit]


def explain_lesions(
    classifier: Classifier,
    scans: Sequence[Scan],
    group: Sequence[int],
    healthy: Collection[str],
    lesions: int,
    track: Track,
) -> Explained:
    """Draw ``lesions`` in each scan, one at a time, and explain the answers, also that for the scan without a lesion.

    A map that explains one of the labels ``healthy`` is not about a lesion and is left out. Models of two labels always
    explain the positive one.
    """
    planned: deque[_Picture] = deque()  # the classifier reads a few pictures ahead
    failed: list[tuple[Scan, InputError]] = []
    without_head: list[Scan] = []

    def sources() -> Iterator[Pixels]:
        for scan, number in zip(scans, group, strict=True):
            try:
                pixels = readers.load(scan.path)
            except InputError as error:
                failed.append((scan, error))
                continue
            pictures = list(_pictures(scan, int(number), pixels, lesions, classifier))
            if not pictures:
                without_head.append(scan)
            for picture in pictures:
                planned.append(picture)
                yield picture.pixels

    cases: list[Case] = []
    maps: list[HealthyMap] = []
    results = classifier.predict_batches(sources(), explain=True, batch_size=_BATCH)
    for result in track(results, "explain", len(scans) * (1 + lesions)):
        picture = planned.popleft()
        if isinstance(result, Failure):  # the scan was read before, so the memory is used up, for example
            failed.append((picture.scan, result.error))
        elif result.heatmap is not None and result.explained not in healthy:
            if picture.look is None:
                maps.append(HealthyMap(picture.group, float(result.heatmap.max())))
            else:
                called = result.label not in healthy
                cases.append(_case(classifier, picture, picture.look, result, result.heatmap, called=called))
    return Explained(cases, maps, len(without_head), failed)


def _pictures(scan: Scan, group: int, pixels: Pixels, lesions: int, classifier: Classifier) -> Iterator[_Picture]:
    """Yield the scan itself, then the same scan with each of its lesions; nothing if it has no head."""
    preprocessing = classifier.bundle.manifest.preprocessing
    resize = preprocessing.resize_picture
    # A model that frames the head finds nearly the same square in the section as in the scan.
    pixels = preprocessing.section(pixels)
    gray = to_gray(pixels)
    healthy = resize(pixels)
    grid = healthy.shape[:2]
    head = mask_to_grid(head_mask(gray), grid)
    if head.mean() < _LEAST_HEAD:
        return
    aspect = gray.shape[1] / gray.shape[0]
    yield _Picture(scan, group, 0, None, pixels, healthy, np.zeros(grid, bool), head, aspect)
    for number, step in enumerate(_NEXT_LOOKS[:lesions]):
        look = LOOKS[(int(scan.sha256[:8], 16) + step) % len(LOOKS)]
        drawn = _draw(scan, number, gray, look, grid)
        if drawn is not None:
            lesion = mask_to_grid(drawn.mask, grid)
            yield _Picture(scan, group, number, look, _rgb(drawn.gray), resize(_rgb(gray)), lesion, head, aspect)


def _draw(scan: Scan, number: int, gray: Gray, look: Look, grid: tuple[int, int]) -> DrawnLesion | None:
    """Draw a lesion that is large enough in the network's input, or return None."""
    rng = np.random.default_rng(seed_of(scan, number))
    for _ in range(_TRIES):
        drawn = draw_lesion(rng, gray, look)
        if drawn is not None and mask_to_grid(drawn.mask, grid).mean() >= _LEAST_LESION:
            return drawn
    return None


def _rgb(gray: Gray) -> Pixels:
    return np.repeat(gray[..., None], 3, axis=-1)


def _case(
    classifier: Classifier, picture: _Picture, look: Look, result: Prediction, heatmap: Heat, *, called: bool
) -> Case:
    explained = str(result.explained)
    grid = picture.lesion.shape[0], picture.lesion.shape[1]
    pixels = classifier.bundle.manifest.preprocessing.resize_picture(picture.pixels)
    curves: dict[str, Curves] = {}
    if called:
        maps = {"heatmap": heatmap, **reference_maps(seed_of(picture.scan, picture.number), picture.head)}
        # The other half of the head before the lesion was drawn: that of the scan with the lesion would bring a second
        # lesion to the other side as soon as that side is replaced.
        everywhere = np.ones((1, *grid), np.float32)
        fill = Head(picture.healthy).cover(everywhere, "mirrored half")[0]
        curves = removal_curves(pixels, maps, picture.head, fill, _answer(classifier, explained))
    return Case(
        scan=picture.scan,
        number=picture.number,
        group=picture.group,
        look=look,
        called=called,
        probability=result.probabilities[explained],
        gray=to_gray(pixels),
        lesion=picture.lesion,
        head=picture.head,
        heatmap=heatmap,
        aspect=picture.aspect,
        curves=curves,
    )


def _answer(classifier: Classifier, label: str) -> Callable[[Pixels], NDArray[np.float64]]:
    """Return a function that gives the probability of a label, float64 (N,), for inputs uint8 (N, H, W, 3)."""
    manifest = classifier.bundle.manifest
    column = manifest.labels.index(label)

    def answer(batch: Pixels) -> NDArray[np.float64]:
        parts = [
            recalibrated(classifier.engine.run(batch[start : start + _BATCH]), manifest)[:, column]
            for start in range(0, len(batch), _BATCH)
        ]
        return np.concatenate(parts).astype(np.float64)

    return answer
