"""Group the slices of scans into series and sort each series by position, from the facts in their headers.

Nothing here reads pixels, so that a study of thousands of slices takes the memory of its headers. The instance number
is never used: scanners and archives renumber slices.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product
from pathlib import Path
from statistics import median

from mri_edge.errors import InputError

from .checks import ResultWarning
from .geometry import position_along_normal, radiological_view

Vector = tuple[float, ...]

# Header values are decimal text, which each exporter rounds in its own way.
_SAME_DIRECTION = 0.02  # largest difference of a direction cosine, about one degree
_SAME_SPACING = 0.01  # proportion
_SAME_ECHO_MS = 0.05
_SAME_POSITION_MM = 0.02
_MAX_NUMBER = 1e30  # larger ones are compared with each other only
_GAP = 1.5  # a distance of more than this many times the usual one is a gap
_MAX_NAMED = 3  # files that a message names


@dataclass(frozen=True)
class SliceFacts:
    """What the header says about one frame. Nothing in it identifies a patient.

    Attributes
    ----------
    source, index, count
        As in ``Frame``: the path as it was given, the position in the file, and how many frames the file holds.
    kind
        The format: ``"dicom"`` or ``"nifti"``; None for a picture, about which nothing else is known.
    study, series, instance
        Unique identifiers of DICOM, or None.
    orientation
        Direction cosines of a row and of a column of the stored picture, 6 numbers in LPS+, or None.
    position
        Center of the first stored voxel in mm, LPS+, or None.
    spacing
        mm between rows and between columns, or None.
    matrix
        Rows and columns as stored.
    echo
        Echo time in ms, or the number of the echo if there is no time, or None.
    image_type
        Such as ``("ORIGINAL", "PRIMARY", "M")``; empty if the header has none.
    syntax
        How the pixels are stored, for people: "JPEG 2000".
    window
        Center and width of the first window, or None.
    has_table
        Whether a table of the file gives the gray levels, in place of a window.
    refusal
        Why the reader will refuse this frame, or None.
    """

    source: str
    index: int = 0
    count: int = 1
    kind: str | None = None
    study: str | None = None
    series: str | None = None
    instance: str | None = None
    orientation: Vector | None = None
    position: Vector | None = None
    spacing: Vector | None = None
    matrix: tuple[int, int] | None = None
    echo: float | None = None
    image_type: tuple[str, ...] = ()
    syntax: str | None = None
    window: tuple[float, float] | None = None
    has_table: bool = False
    refusal: InputError | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Series:
    """Slices that belong together: one series, or a part of one, sorted by position.

    Attributes
    ----------
    study, uid
        Unique identifiers of DICOM, or None.
    part, parts
        Number of this part, from 1, and how many parts the slices of this series were split into.
    slices
        Sorted along the normal, toward the patient's left, back or head; slices without a position in the order in
        which they were given.
    positions
        mm along the normal for each slice, or None where the header has no position.
    plane
        ``"axial"``, ``"coronal"`` or ``"sagittal"``, by the largest component of the normal; None if unknown.
    distance
        mm between neighboring slices (the median), or None.
    warnings
        What is wrong with the series: gaps, positions with several slices, copies, slices that share an identifier, no
        positions.
    """

    study: str | None
    uid: str | None
    part: int
    parts: int
    slices: tuple[SliceFacts, ...]
    positions: tuple[float | None, ...]
    plane: str | None
    distance: float | None
    warnings: tuple[ResultWarning, ...] = ()

    @property
    def first(self) -> SliceFacts:
        """The first slice. All slices agree in orientation, spacing, echo and image type."""
        return self.slices[0]


def group(slices: Iterable[SliceFacts]) -> list[Series]:
    """Return the series in the order of their first slices.

    Slices of one series are split where the orientation, the spacing, the matrix, the echo or the image type differs. A
    slice that has the identifier, the position and the matrix of an earlier one is a copy and left out, or takes its
    place if the reader will refuse only the earlier one. A picture, or a DICOM file without the identifier of a series,
    is a series of its own; so is each other file whose format has none, with all its frames.
    """
    by_series: dict[tuple[str, ...], list[SliceFacts]] = {}
    for facts in slices:
        key = (facts.study or "", facts.series) if facts.series else ("", "", facts.source)
        by_series.setdefault(key, []).append(facts)
    return [series for members in by_series.values() for series in _split(members)]


def plane_of(orientation: Sequence[float] | None) -> str | None:
    """Return the name of the plane that a slice is nearest to, or None without a usable orientation."""
    view = None if orientation is None else radiological_view(orientation[:3], orientation[3:])
    return None if view is None else view.plane


def _split(members: list[SliceFacts]) -> list[Series]:
    """Return the parts of one series."""
    parts: list[list[SliceFacts]] = []
    copies: list[list[SliceFacts]] = []  # of the slices of each part
    # By these facts, because comparing each slice with each of thousands of parts takes minutes.
    by_facts: dict[tuple[object, ...], list[int]] = {}
    for facts, copied in _without_copies(members):
        steps = _step(facts.echo, 2 * _SAME_ECHO_MS), _spacing_step(facts.spacing)
        cells = product((facts.matrix,), (facts.image_type,), *map(_around, steps))
        near = sorted(number for cell in cells for number in by_facts.get(cell, ()))
        part = next((number for number in near if _belong_together(parts[number][0], facts)), None)
        if part is None:
            part = len(parts)
            parts.append([])
            copies.append([])
            by_facts.setdefault((facts.matrix, facts.image_type, *steps), []).append(part)
        parts[part].append(facts)
        copies[part] += copied
    return [
        _sorted(part, number, len(parts), copied)
        for number, (part, copied) in enumerate(zip(parts, copies, strict=True), 1)
    ]


def _without_copies(members: list[SliceFacts]) -> list[tuple[SliceFacts, list[SliceFacts]]]:
    """Return the slices, each with its copies."""
    kept: list[tuple[SliceFacts, list[SliceFacts]]] = []
    # By matrix and position, because thousands of slices may share one identifier.
    by_identity: dict[tuple[str, int], dict[tuple[object, ...], list[int]]] = {}
    for facts in members:
        numbers = by_identity.setdefault(_identity(facts), {})
        position = facts.position or () if _has_position(facts) else ()
        steps = [_step(coordinate, 2 * _SAME_POSITION_MM) for coordinate in position]
        cells = product((facts.matrix,), *map(_around, steps)) if numbers else ()
        near = (number for cell in cells for number in numbers.get(cell, ()))
        same = next((number for number in near if _in_one_place(kept[number][0], facts)), None)
        if same is None:
            numbers.setdefault((facts.matrix, *steps), []).append(len(kept))
            kept.append((facts, []))
            continue
        first, copies = kept[same]
        if first.refusal is not None and facts.refusal is None:
            kept[same], facts = (facts, copies), first  # noqa: PLW2901
        copies.append(facts)
    return kept


def _identity(facts: SliceFacts) -> tuple[str, int]:
    return facts.instance or os.path.abspath(facts.source), facts.index


def _step(number: float | None, size: float) -> int | None:
    """Return a whole number that differs by at most 1 between numbers that differ by less than ``size``."""
    return None if number is None else math.floor(max(-_MAX_NUMBER, min(number, _MAX_NUMBER)) / size)


def _spacing_step(spacing: Vector | None) -> int | None:
    """Return a whole number that differs by at most 1 between spacings that count as equal, or None."""
    largest = max(spacing or (0,))
    return _step(math.log(largest), 2 * _SAME_SPACING) if 0 < largest < math.inf else None


def _around(step: int | None) -> tuple[int | None, ...]:
    return (None,) if step is None else (step - 1, step, step + 1)


def _in_one_place(first: SliceFacts, second: SliceFacts) -> bool:
    """Whether two slices agree in matrix and position, or have no position."""
    one, other = (facts.position if _has_position(facts) else None for facts in (first, second))
    return first.matrix == second.matrix and _near(one, other, _SAME_POSITION_MM)


def _belong_together(first: SliceFacts, second: SliceFacts) -> bool:
    return (
        first.matrix == second.matrix
        and first.image_type == second.image_type
        and _has_position(first) == _has_position(second)
        and _near(first.orientation, second.orientation, _SAME_DIRECTION)
        and _near(first.spacing, second.spacing, _SAME_SPACING * max(first.spacing or (0,)))
        and _near(_as_vector(first.echo), _as_vector(second.echo), _SAME_ECHO_MS)
    )


def _has_position(facts: SliceFacts) -> bool:
    return facts.position is not None and all(map(math.isfinite, facts.position))


def _as_vector(number: float | None) -> Vector | None:
    return None if number is None else (number,)


def _near(first: Vector | None, second: Vector | None, tolerance: float) -> bool:
    if first is None or second is None:
        return first is second
    return all(abs(a - b) <= tolerance for a, b in zip(first, second, strict=True))


def _sorted(members: list[SliceFacts], number: int, parts: int, copies: list[SliceFacts]) -> Series:
    first = members[0]
    warnings = [*_copy_warnings(copies), *_identifier_warnings(members)]
    positions: tuple[float | None, ...] = (None,) * len(members)
    distance = None
    located = [(position, facts) for facts in members if (position := _position(first, facts)) is not None]
    one_place = len(members) > 1 and len({(facts.source, position) for position, facts in located}) == 1
    if len(located) == len(members) and not one_place:  # a position for a whole file is not that of its frames
        located.sort(key=lambda pair: pair[0])
        values = [position for position, _ in located]
        members, positions = [facts for _, facts in located], tuple(round(value, 3) for value in values)
        levels = _levels(values)
        distance = median(b - a for a, b in pairwise(levels)) if len(levels) > 1 else None
        warnings += _position_warnings(values, levels, distance)
    elif len(members) > 1:
        warnings.append(
            ResultWarning("no_positions", "the headers have no positions: the slices are in the order of the files")
        )
    return Series(
        first.study,
        first.series,
        number,
        parts,
        tuple(members),
        positions,
        plane_of(first.orientation),
        distance,
        tuple(warnings),
    )


def _position(first: SliceFacts, facts: SliceFacts) -> float | None:
    """Return the position of a slice along the normal of the first one, in mm."""
    if first.orientation is None or facts.position is None:
        return None
    return position_along_normal(first.orientation[:3], first.orientation[3:], facts.position)


def _levels(values: Sequence[float]) -> list[float]:
    """Return sorted positions without those that equal the one before."""
    levels = list(values[:1])
    for value in values:
        if value - levels[-1] > _SAME_POSITION_MM:
            levels.append(value)
    return levels


def _copy_warnings(copies: Sequence[SliceFacts]) -> Iterator[ResultWarning]:
    if copies:
        files = list(dict.fromkeys(Path(facts.source).name for facts in copies))
        names = ", ".join(files[:_MAX_NAMED]) + (", …" if len(files) > _MAX_NAMED else "")
        noun = "copy of a slice was" if len(copies) == 1 else "copies of slices were"
        yield ResultWarning("copies", f"{len(copies)} {noun} left out ({names})", len(copies), 0)


def _identifier_warnings(members: Sequence[SliceFacts]) -> Iterator[ResultWarning]:
    shared = len(members) - len({_identity(facts) for facts in members})
    if shared:
        several = f"{shared} slices have the identifier of another one"
        message = several if shared > 1 else "1 slice has the identifier of another one"
        yield ResultWarning("repeated_identifiers", f"{message}, at another position: all are kept", shared, 0)


def _position_warnings(
    values: Sequence[float], levels: Sequence[float], distance: float | None
) -> Iterator[ResultWarning]:
    repeated = len(values) - len(levels)
    if repeated:
        several = f"{repeated} slices lie where another one lies" if repeated > 1 else "1 slice lies where another lies"
        yield ResultWarning("repeated_positions", several, repeated, 0)
    if distance is None:
        return
    gaps = [(a, b) for a, b in pairwise(levels) if b - a > _GAP * distance]
    if gaps:
        missing = sum(round((b - a) / distance) - 1 for a, b in gaps)
        where = ", ".join(f"{a:.1f} to {b:.1f} mm" for a, b in gaps[:_MAX_NAMED])
        more = ", …" if len(gaps) > _MAX_NAMED else ""
        noun = "slice is" if missing == 1 else "slices are"
        yield ResultWarning("gap", f"about {missing} {noun} missing (from {where}{more})", missing, 0)
