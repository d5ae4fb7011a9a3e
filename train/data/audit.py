"""Check labelled scans before a training: duplicates, contradictory labels, and whether file order carries identity."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mri_edge.errors import DataError

from .collection import Collection
from .duplicates import Hashes, near_duplicates
from .folder import Scan
from .grouping import BLOCKS, GroupRule
from .order import NEIGHBORS, FileOrder

# Findings of each kind in the table, and files of each. The bundle's data.json (``authoring.writer.FINDINGS``) has all.
_SHOWN = 5


def audit(data: Collection, rule: GroupRule | None, say: Callable[[str], None]) -> list[Finding]:
    """Find duplicates and contradictions, and pass tables of them and of the order of files to ``say``.

    The table of the order, with a recommendation, is left out if no folder is ordered or if ``rule`` keeps neighbors
    together already. ``rule`` is the value of ``--groups``, None if it was not given.
    """
    findings = inspect(data.scans, data.hashes)
    if findings:
        say(table(data.scans, findings))
    if rule is not None:
        say(f"groups: {data.grouping}; {len(data.scans)} images in {len(np.unique(data.group))} groups")
    divides_neighbors = rule is None or not (rule.block or rule.patients)
    if divides_neighbors and any(folder.carries_identity for folder in data.order):
        say(order_table(data.order))
    return findings


def check_groups(data: Collection, names: Sequence[str], needed: int = 2) -> None:
    """Check that every label has at least ``needed`` groups, because no split or fold divides a group.

    Raises DataError that names the label, the number of its groups, and what to do.
    """
    for index, name in enumerate(names):
        of_label = data.label == index
        images, found = np.count_nonzero(of_label), len(np.unique(data.group[of_label]))
        if images and found < needed:
            raise DataError(
                f"label {name!r} has {found} group{'' if found == 1 else 's'} of images ({images} images, grouped by "
                f"{data.grouping}), and at least {needed} are needed, because a group is never divided",
                f"Use {data.smaller_groups}fewer folds or more images",
            )


@dataclass(frozen=True)
class Finding:
    """The files of one finding, and what they have in common: ``kind`` as ``inspect`` describes it."""

    kind: str
    files: tuple[str, ...]


def inspect(scans: Sequence[Scan], hashes: Hashes) -> list[Finding]:
    """Find duplicates, near-duplicates and contradictions: one finding for each set of files.

    ``duplicate`` files have the same bytes. ``near-duplicate`` files are a chain of pictures whose perceptual hashes
    are at most ``SAME_SLICE_BITS`` apart, and not all of the same bytes. ``contradictory`` files are either, with
    several labels.
    """
    group = near_duplicates(hashes).tolist()
    first_of: dict[str, int] = {}
    for row, scan in enumerate(scans):
        first_of.setdefault(scan.sha256, row)
    same = _together(scans, [scan.sha256 for scan in scans])
    near = _together(scans, [group[first_of[scan.sha256]] for scan in scans])
    found = {
        "duplicate": [files for files in same if len(files) > 1],
        "near-duplicate": [files for files in near if len({scan.sha256 for scan in files}) > 1],
        "contradictory": [files for files in near if len({scan.label for scan in files}) > 1],
    }
    return [Finding(kind, tuple(scan.file for scan in files)) for kind, sets in found.items() for files in sets]


def _together(scans: Sequence[Scan], keys: Sequence[Hashable]) -> list[list[Scan]]:
    """Return the scans of each key, in order."""
    found: dict[Hashable, list[Scan]] = defaultdict(list)
    for scan, key in zip(scans, keys, strict=True):
        found[key].append(scan)
    return list(found.values())


def table(scans: Sequence[Scan], findings: Iterable[Finding]) -> str:
    """Format the findings as lines of text, at most ``_SHOWN`` of each kind. Return "" if there are none."""
    kinds: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        kinds[finding.kind].append(finding)
    lines = []
    for kind, of_kind in kinds.items():
        images = {file for finding in of_kind for file in finding.files}
        lines.append(f"{kind:<15} {len(of_kind):>5} groups, {len(images)} of {len(scans)} images")
        lines += [f"{'':<15}   {_line(finding.files)}" for finding in of_kind[:_SHOWN]]
        if len(of_kind) > _SHOWN:
            lines.append(f"{'':<15}   … and {len(of_kind) - _SHOWN} more")
    return "\n".join(lines)


def _line(files: Sequence[str]) -> str:
    """Name the first files and the last one: it often has the other label, because scans are sorted by label."""
    if len(files) > _SHOWN:
        files = [*files[: _SHOWN - 1], f"… {len(files) - _SHOWN} more …", files[-1]]
    return "  =  ".join(files)


def order_table(order: Sequence[FileOrder]) -> str:
    """Format the measurement of all class folders as lines of text, with a recommendation as the last line."""
    width = max(len(folder.folder) for folder in order)
    lines = [f"{'nearest image by number':<{width}}  images  within {NEIGHBORS} [95% interval]  by chance"]
    lines += [
        f"{folder.folder:<{width}}  {folder.images:>6}  {folder.fraction:>8.2f} [{folder.low:.2f}, {folder.high:.2f}]"
        f"{'':<3}{folder.chance:>10.3f}"
        for folder in order
    ]
    found = ", ".join(folder.folder for folder in order if folder.carries_identity)
    return "\n".join(
        [*lines, f"File order carries identity in {found}. Use --groups {BLOCKS} to keep neighbors together."]
    )
