"""Choose the scans that a training uses: all of a data folder, without those that the user excludes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from mri_edge.errors import DataError

from .folder import Scan, find_scans
from .grouping import GroupRule, read_patients
from .labels import Labels


@dataclass(frozen=True)
class Selection:
    """The scans that a training uses, and how to group them.

    ``patients`` has one entry per scan, or is None if ``rule`` names no file with patients.
    """

    scans: list[Scan]
    left_out: list[Scan]
    labels: Labels
    rule: GroupRule
    patients: list[str] | None

    def facts(self) -> list[object]:
        """Return everything about the data that affects the result of a training, as JSON values."""
        chosen = [[scan.file, scan.sha256, scan.label] for scan in self.scans]
        left_out = [scan.file for scan in self.left_out]
        return [chosen, left_out, str(self.rule), self.patients, list(self.labels.names), self.labels.positive]


def select(
    data: Path,
    positive: str | None,
    excluded: Iterable[str] = (),
    rule: GroupRule | None = None,
    *,
    labels: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Selection:
    """List the scans of a data folder without those that ``exclude`` removes, and read their patients.

    Parameters
    ----------
    positive, labels
        As ``positive`` and ``rule`` of ``choose_labels``.
    rule
        What a group of scans is; None means near-duplicates.
    say
        Called with the labels and their folders.

    Raises
    ------
    UsageError, DataError
        As for ``find_scans``, ``exclude`` and ``read_patients``; or a label has no scans left.
    """
    found, chosen = find_scans(data, positive, rule=labels)
    say(chosen.describe())
    scans, left_out = exclude(found, excluded)
    for index, name in enumerate(chosen.names):
        if all(scan.label != index for scan in scans):
            raise DataError(f"--exclude leaves no image of {name}", "Exclude less")
    rule = rule or GroupRule()
    patients = read_patients(rule.patients, scans) if rule.patients else None
    return Selection(scans, left_out, chosen, rule, patients)


def exclude(scans: Sequence[Scan], patterns: Iterable[str]) -> tuple[list[Scan], list[Scan]]:
    """Split scans into those to use and those to exclude.

    ``patterns`` are names or shell-style patterns of ``Scan.file``, or paths of text files with one of them per line.

    Raises
    ------
    DataError
        A pattern matches no scan and is probably misspelled, or a text file cannot be read.
    """

    names = {scan.file for scan in scans}

    def matched(pattern: str) -> set[str]:
        if pattern in names:  # also a name that is a pattern, such as scan[1].png
            return {pattern}
        return {name for name in names if fnmatchcase(name, pattern)}

    left_out: set[str] = set()
    for pattern in patterns:
        # In the data folder itself, the name of a scan is also the path of an existing file, so try the pattern first.
        is_list = not matched(pattern) and Path(pattern).is_file()
        for line in _lines(Path(pattern)) if is_list else [pattern]:
            if not (found := matched(line)):
                raise DataError(f"--exclude: no scan matches {line!r}", "Patterns are relative to --data: 'no/*.gif'")
            left_out |= found
    return [scan for scan in scans if scan.file not in left_out], [scan for scan in scans if scan.file in left_out]


def _lines(path: Path) -> list[str]:
    try:
        return list(filter(None, map(str.strip, path.read_text(encoding="utf-8").splitlines())))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read ({error})", "Give a text file with one pattern per line") from error
