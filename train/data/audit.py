"""Check labelled scans before a training: duplicates, contradictory labels, and whether file order carries identity."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from .duplicates import SAME_SLICE_BITS, Hashes, close_pairs
from .folder import Scan

_SHOWN = 5  # findings of each kind in the table; the bundle's data.json has all of them


@dataclass(frozen=True)
class Finding:
    """The files of one finding, and what they have in common: ``kind`` as ``inspect`` describes it."""

    kind: str
    files: tuple[str, ...]


def inspect(scans: Sequence[Scan], hashes: Hashes) -> list[Finding]:
    """Find duplicates, near-duplicates and contradictions.

    ``duplicate`` files have the same bytes. ``near-duplicate`` files have different bytes, and perceptual hashes at
    most ``SAME_SLICE_BITS`` apart. ``contradictory`` files are either, but have different labels.
    """
    contents: dict[str, list[Scan]] = defaultdict(list)
    for scan in scans:
        contents[scan.sha256].append(scan)
    same = [tuple(group) for group in contents.values() if len(group) > 1]
    near = [
        (scans[first], scans[second])
        for first, second in close_pairs(hashes, SAME_SLICE_BITS)
        if scans[first].sha256 != scans[second].sha256
    ]
    pairs = [pair for group in same for pair in combinations(group, 2)] + near
    found: dict[str, Sequence[Sequence[Scan]]] = {
        "duplicate": same,
        "near-duplicate": near,
        "contradictory": [pair for pair in pairs if pair[0].label != pair[1].label],
    }
    return [Finding(kind, tuple(scan.file for scan in group)) for kind, groups in found.items() for group in groups]


def table(scans: Sequence[Scan], findings: Iterable[Finding]) -> str:
    """Format the findings as lines of text, at most ``_SHOWN`` of each kind. Return "" if there are none."""
    kinds: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        kinds[finding.kind].append(finding)
    lines = []
    for kind, of_kind in kinds.items():
        images = {file for finding in of_kind for file in finding.files}
        lines.append(f"{kind:<15} {len(of_kind):>5} groups, {len(images)} of {len(scans)} images")
        lines += [f"{'':<15}   {'  =  '.join(finding.files)}" for finding in of_kind[:_SHOWN]]
        if len(of_kind) > _SHOWN:
            lines.append(f"{'':<15}   … and {len(of_kind) - _SHOWN} more")
    return "\n".join(lines)
